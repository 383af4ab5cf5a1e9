"""`ava gate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def _compute(run: StepRun) -> None:
    from ava_core.registry.gate import figures, gate
    from ava_core.tracking import tracking_uri

    decision = gate(
        config=run.config.registry,
        model=run.input("model"),
        quantized=run.inputs["quantized"],
        evaluation=run.input("evaluation"),
        output=run.output,
        digests=run.digests,
        tracking_uri=tracking_uri(),
        progress=run.progress,
    )
    run.metrics.update(figures(decision))


command = step_command("gate", _compute)
