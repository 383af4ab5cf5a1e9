"""In-context retrieval for language modelling (RALM, arXiv 2302.00083): is a passage before the text worth its place?

    python -m benchmarks.retrieval_in_context --model MODEL --shards SHARDS --index INDEX

INDEX is of the training split alone (the default of `ava index`), so nothing of the scored text is in it. At places
spread evenly over the test split, STRIDE tokens are predicted three times in windows of the model's training context:
after as much of their document as fits; after a passage that BM25 finds with the QUERY tokens before them, and as much
as fits behind it; and after no more of the document than that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ava_core.data.reencoding import open_tokens
from ava_core.evaluation.candidates import read_training
from ava_core.generation.loading import load_model
from ava_core.retrieval.retriever import Retriever

STRIDE, QUERY = 16, 32


def windows(
    tokens: np.ndarray, place: int, length: int, begin: int, passage: Sequence[int], boundary: int
) -> dict[str, list[int]]:
    """What the model reads to predict tokens[place : place + STRIDE], by way: these tokens and what stands before.

    Args:
        tokens: the stream.
        place: of the first token to predict.
        length: tokens of a window, the boundary token that it begins with among them.
        begin: of the document.
        passage: tokens of what was found.
        boundary: the token that ends a document.
    """
    room = length - 1 - (STRIDE - 1)
    found = list(passage)[: room - QUERY]
    end, rest = place + STRIDE - 1, room - len(found)  # the last one is predicted, never read
    alone, shorter = (tokens[max(begin, place - most) : end].tolist() for most in (room, rest))
    return {"alone": [boundary, *alone], "passage": [boundary, *found, *shorter], "shorter": [boundary, *shorter]}


def nats(model: Any, read: Sequence[int], targets: np.ndarray) -> float:
    """Loss on the targets, which follow the last tokens of `read`, each after the one before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([read]), use_cache=False, logits_to_keep=STRIDE).logits[0]
    wanted = torch.from_numpy(targets.astype(np.int64))
    return float(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"))


def measure(model: Path, shards: Path, index: Path, places: int) -> dict[str, Any]:
    """Nats per token of each way, and what the passage changes with its standard error."""
    length = read_training(model)["sequence_length"]
    split = open_tokens(model, shards, "test")
    network, tokenizer = load_model(model)
    retriever = Retriever.open(index, mode="lexical")
    tokens, starts = np.asarray(split.tokens), split.document_starts
    sums: dict[str, list[float]] = {}
    for place in np.linspace(QUERY + 1, len(tokens) - STRIDE, places).astype(int).tolist():
        begin = int(starts[np.searchsorted(starts, place, "right") - 1])
        query = tokenizer.decode(tokens[max(begin, place - QUERY) : place]).strip()
        hits = retriever.search(query, 1, mode="lexical") if query else []
        passage = tokenizer(hits[0].passage.text + "\n", add_special_tokens=False)["input_ids"] if hits else []
        read = windows(tokens, place, length, begin, passage, split.boundary_token_id)
        for way, ids in read.items():
            sums.setdefault(way, []).append(nats(network, ids, tokens[place : place + STRIDE]) / STRIDE)
    change = np.subtract(sums["passage"], sums["alone"])
    return {
        **{way: round(float(np.mean(values)), 4) for way, values in sums.items()},
        "passage_minus_alone": round(float(change.mean()), 4),
        "standard_error": round(float(change.std(ddof=1) / len(change) ** 0.5), 4),
        "tokens": STRIDE * len(change),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "shards", "index"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--places", type=int, default=400)
    given = parser.parse_args()
    print(json.dumps(measure(given.model, given.shards, given.index, given.places), indent=2))


if __name__ == "__main__":
    main()
