"""`ava train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ava_core.cli.find_rate import FIND_RATE
from ava_core.cli.step_command import Switch, step_command

if TYPE_CHECKING:
    from ava_core.runtime.request import Request, StepRun


def _compute(run: StepRun) -> None:
    from ava_core.launching.ranked_step import announce_training
    from ava_core.training.request import TrainRequest

    request = TrainRequest(
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
        kept=run.kept / "checkpoints",
    )
    announce_training(request)
    from ava_core.launching.launch import launch
    from ava_core.tracking.live import live_run

    parameters = run.config.model_dump(mode="json", by_alias=True)
    experiment, parent = run.config.registry.experiment, run.digests.get("init", "")
    with live_run(experiment=experiment, parameters=parameters, state=run.state, parent=parent):
        result = launch(request, run.progress)
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


def _run(request: Request, compute: Callable[[StepRun], None]) -> None:
    if request.config.train.launcher == "trainjob":
        from ava_core.launching.step import run_step_on_cluster

        run_step_on_cluster(request)
        return
    from ava_core.launching.ranked_step import run_step_as_rank

    run_step_as_rank(request, compute)


RESET_OPTIMIZER = Switch(
    flag="reset_optimizer",
    setting="train.reset_optimizer",
    help="With --resume: take only the weights, so that optimiser and precision may be others.",
)
command = step_command("train", _compute, runner=_run, instead=FIND_RATE, switches=(RESET_OPTIMIZER,))
