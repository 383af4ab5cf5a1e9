"""`ava quantize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def _compute(run: StepRun) -> None:
    from ava_core.quantization.quantize import quantize

    result = quantize(
        config=run.config.quantize,
        scheme=run.choices["scheme"],
        model=run.input("model"),
        shards=run.input("shards"),
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("quantize", _compute)
