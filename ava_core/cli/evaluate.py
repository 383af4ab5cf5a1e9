"""`ava evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def _compute(run: StepRun) -> None:
    from ava_core.evaluation.evaluate import evaluate

    result = evaluate(
        config=run.config.evaluate,
        seed=run.config.seed,
        model=run.input("model"),
        shards=run.input("shards"),
        quantized=run.inputs["quantized"],
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("evaluate", _compute)
