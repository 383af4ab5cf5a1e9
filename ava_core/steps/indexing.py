"""The step that makes an index of passages; the other steps are in `ava_core.steps.table`."""

from __future__ import annotations

from collections.abc import Sequence

from ava_core.steps.alignment import aligning
from ava_core.steps.kinds import DATA_IN, INDEX, MODEL, SHARDS_IN
from ava_core.steps.spec import Input, StepSpec

INDEXING = StepSpec(
    name="index",
    summary="Make an index of passages, in which generation, serving and evaluation look things up.",
    output="index",
    kind=INDEX,
    sections=("retrieval",),
    function="ava_core.retrieval.build:build_index",
    inputs=(
        SHARDS_IN,
        DATA_IN,
        Input(
            name="model",
            kind=MODEL,
            help="Model whose hidden states are the vectors, for retrieval.embedding = model, as retrieval.model: its"
            " folder, or models:/NAME@ALIAS.",
            description="Model whose hidden states are the vectors.",
            required=False,
            setting="retrieval.model",
        ),
        Input(
            name="previous",
            kind=INDEX,
            help="Earlier index: passages that are in it already aren't embedded again.",
            required=False,
            by_hand=True,
        ),
    ),
    metrics=("documents", "passages", "tokens_per_passage", "embedded", "taken_over", "truncated", "index_bytes"),
    timings=("passages_per_second", "wall_seconds"),
    headlines=("documents", "passages", "index_bytes"),
)


def between(stages: Sequence[str]) -> list[StepSpec]:
    """The steps between train and quantize that a configuration asks for, in their order.

    Args:
        stages: `AvaConfig.stages`: trainings of alignment, and `index` behind them.
    """
    indexing = [INDEXING] if INDEXING.name in stages else []
    return [*aligning([name for name in stages if name != INDEXING.name]), *indexing]
