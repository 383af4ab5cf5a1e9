"""`ava train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.runtime.step import StepRun

NAME = "train"


def _compute(run: StepRun) -> None:
    from ava_core.training.train import train

    result = train(
        model_config=run.config.model,
        train_config=run.config.train,
        seed=run.config.seed,
        shards=run.input("shards"),
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command(NAME, _compute)
