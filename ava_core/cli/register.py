"""`ava register`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def _compute(run: StepRun) -> None:
    from ava_core.registry.register import register
    from ava_core.tracking import tracking_uri

    result = register(
        config=run.config.registry,
        resolved_config=run.config.model_dump(mode="json", by_alias=True),
        model=run.input("model"),
        quantized=run.inputs["quantized"],
        evaluation=run.input("evaluation"),
        gate=run.optional_input("gate"),
        output=run.output,
        digests=run.digests,
        tracking_uri=tracking_uri(),
        git_commit=os.environ.get("AVA_GIT_COMMIT"),
        progress=run.progress,
    )
    run.metrics.update(result.metrics)


command = step_command("register", _compute)
