"""`ava preprocess --for preference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ava_core.runtime.request import StepRun


def compute(run: StepRun) -> None:
    from ava_core.alignment.prepare_pairs import prepare_pairs

    result = prepare_pairs(
        run.config.preferences,
        shards=run.input("shards"),
        data=run.optional_input("data"),
        model=run.optional_input("model"),
        seed=run.config.seed,
        output=run.output,
        state=run.state,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)
