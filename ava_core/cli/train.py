"""`ava train`, and `ava train --find-lr`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli.live_training import shown_live
from ava_core.cli.step_command import Instead, step_command

if TYPE_CHECKING:
    from ava_core.runtime.step import Request, StepRun

NAME = "train"
EXPLORATION = Instead(
    flag="find_lr",
    help="Search for a learning rate instead of training: OUTPUT gets learning_rate.json and its plot.",
    call=lambda request, _: _find_rate(request),
)


def _compute(run: StepRun) -> None:
    from ava_core.training.processes import follow

    arguments: dict[str, Any] = {
        "model_config": run.config.model,
        "train_config": run.config.train,
        "seed": run.config.seed,
        "shards": run.input("shards"),
        "output": run.output,
        "state": run.state,
        "threads": follow.threads_of_each(run.threads),
        "progress": run.progress,
        "resume": _optional(run.inputs, "resume"),
        "reference": _optional(run.inputs, "reference"),
        "kept": run.kept / "checkpoints",
    }
    follow.announce_work(arguments)
    from ava_core.training.train import train

    with shown_live(run):
        result = train(**arguments)
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


def _find_rate(request: Request) -> None:
    from ava_core.errors import ConfigError
    from ava_core.runtime.step import prepare_inputs

    output = request.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists: give another folder for the search of a learning rate")
    prepare_inputs(request)
    from ava_core.training.explore import explore_rates

    explore_rates(
        model_config=request.config.model,
        train_config=request.config.train,
        seed=request.config.seed,
        shards=request.inputs["shards"][0],
        output=output,
        threads=request.threads,
        progress=request.progress,
    )


def _optional(inputs: Any, name: str) -> Path | None:
    return next(iter(inputs.get(name, ())), None)


def _run(request: Request, compute: Callable[[StepRun], None]) -> None:
    if request.config.train.launcher == "trainjob":
        from ava_core.training.launchers.step import run_step_on_cluster

        run_step_on_cluster(request)
        return
    from ava_core.training.processes import follow

    follow.run_step_as_rank(request, compute)


command = step_command(NAME, _compute, runner=_run, instead=EXPLORATION)
