"""How often two models of the same shape choose the same experts, teacher-forced on the same text."""

from __future__ import annotations

from pathlib import Path

from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import FILE
from ava_core.evaluation.candidates import read_training
from ava_core.generation.loading import load_model
from ava_core.quantization.parity import measure_parity

SEQUENCES = 32
"""Windows, evenly spaced over the test split."""


def measure_agreement(base: Path, other: Path, shards: Path) -> dict[str, float] | None:
    """Shares of the same choices, as `ava quantize` measures them; None where the experts or the tokens aren't as many.

    It says something of a model and what was made from it. Experts of models that were trained apart have nothing in
    common but their number.

    Args:
        base, other: folders of models.
        shards: their test split is read; its tokens must be the models'.
    """
    tokenizers = {path.read_bytes() for path in (base / FILE, other / FILE, shards / "tokenizer" / FILE)}
    if len(tokenizers) > 1:
        return None
    models = [load_model(folder)[0] for folder in (base, other)]
    shapes = {(model.config.num_layers, model.config.num_experts) for model in models}
    if len(shapes) > 1:
        return None
    found = measure_parity(
        models[0],
        models[1],
        ShardedSplit.open(shards, "test"),
        sequence_length=min(read_training(folder)["sequence_length"] for folder in (base, other)),
        sequences=SEQUENCES,
    )
    return {
        "expert_agreement": found.expert_agreement,
        "expert_slot_agreement": found.expert_slot_agreement,
        "top1_agreement": found.top1_agreement,
    }
