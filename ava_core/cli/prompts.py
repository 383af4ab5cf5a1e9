"""`ava preprocess --for prompts`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def compute(run: StepRun) -> None:
    from ava_core.alignment.prepare_prompts import prepare_prompts

    result = prepare_prompts(
        run.config.prompts,
        shards=run.input("shards"),
        data=run.optional_input("data"),
        output=run.output,
        state=run.state,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)
