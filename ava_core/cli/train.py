"""`ava train`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.find_rate import FIND_RATE
from ava_core.cli.step_command import step_command
from ava_core.cli.step_flags import Switch

if TYPE_CHECKING:
    from ava_core.runtime.request import Request, StepRun
    from ava_core.training.request import TrainRequest


def _compute(run: StepRun) -> None:
    from ava_core.training.request import TrainRequest

    run_training(
        run,
        TrainRequest(
            model_config=run.config.model,
            train_config=run.config.train,
            seed=run.config.seed,
            shards=run.input("shards"),
            output=run.output,
            state=run.state,
            threads=run.threads,
            init=run.optional_input("init"),
            resume=run.optional_input("resume"),
            reference=run.optional_input("reference"),
            teacher=run.optional_input("teacher"),
            work=run.work,
            code=run.code,
            kept=run.kept / "checkpoints",
            profile=_beside(run, "profile") if run.config.train.profile else None,
        ),
    )


def run_training(run: StepRun, request: TrainRequest) -> None:
    """Train, watched by the trackers that the configuration names, in all processes that take part."""
    from ava_core.launching.ranked_step import announce_training

    announce_training(request)
    from ava_core.launching.launch import launch
    from ava_core.tracking.live import live_runs

    asked = run.config.run
    with live_runs(
        experiment=run.config.registry.experiment,
        parameters=run.config.model_dump(mode="json", by_alias=True),
        state=run.state,
        run=asked,
        parent=run.digests.get("init", ""),
        folder=Path(asked.folder) if asked.folder else _beside(run, "tracking"),
        attachments={"profile": request.profile} if request.profile else {},
    ):
        result = launch(request, run.progress)
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


def run_where_asked(request: Request, compute: Callable[[StepRun], None]) -> None:
    """Run a step that trains: as one of several ranks, alone, or in a TrainJob."""
    if request.training.launcher == "trainjob":
        from ava_core.launching.step import run_step_on_cluster

        run_step_on_cluster(request)
        return
    from ava_core.launching.ranked_step import run_step_as_rank
    from ava_core.tracking.sinks import require_installed

    require_installed(request.config.run.trackers)
    run_step_as_rank(request, compute)


def _run(request: Request, compute: Callable[[StepRun], None]) -> None:
    from ava_core.distributed.ranks import Ranks

    trained = False

    def noted(run: StepRun) -> None:
        nonlocal trained
        trained = True
        compute(run)

    run_where_asked(request, noted)
    profile = request.config.train.profile
    elsewhere = request.training.launcher == "trainjob"
    if profile and not (trained or elsewhere) and Ranks.from_environment().is_first:
        logging.getLogger(__name__).warning(
            "train.profile = %d: the training was finished before, so nothing was profiled: add --force", profile
        )


def _beside(run: StepRun, name: str) -> Path:
    """`OUTPUT.NAME`: what a clock gives is no part of the output."""
    return run.destination.with_name(f"{run.destination.name}.{name}")


RESET_OPTIMIZER = Switch(
    flag="reset_optimizer",
    setting="train.reset_optimizer",
    help="With --resume: take only the weights, so that optimiser and precision may be others.",
)
KEEP_OPTIMIZER = Switch(
    flag="keep_optimizer",
    setting="train.keep_optimizer",
    help="With --init: take over the optimiser's state of the model's own training, which was one with"
    " train.keep_last_checkpoint, from the work folder.",
)
command = step_command("train", _compute, runner=_run, instead=(FIND_RATE,), switches=(RESET_OPTIMIZER, KEEP_OPTIMIZER))
