"""`ava sft`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.named_inputs import architecture_of
from ava_core.cli.step_command import step_command
from ava_core.cli.train import run_training, run_where_asked

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def _compute(run: StepRun) -> None:
    from ava_core.training.request import TrainRequest

    model: Path = run.input("model")
    run_training(
        run,
        TrainRequest(
            step="sft",
            model_config=architecture_of(model),
            train_config=run.config.sft,
            seed=run.config.seed,
            shards=run.input("conversations"),
            output=run.output,
            state=run.state,
            threads=run.threads,
            init=model,
            work=run.work,
            code=run.code,
            kept=run.kept / "checkpoints",
        ),
    )


command = step_command("sft", _compute, runner=run_where_asked)
