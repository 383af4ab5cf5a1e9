"""Loss by how often a token occurs: where models differ, it is often on rare tokens or on frequent ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 24
"""Bin i holds tokens that occur 2^i to 2^(i+1) - 1 times in the text, the last one all that occur more often."""


def bins(tokens: np.ndarray) -> np.ndarray:
    """The bin of each token id by its count in the stream `tokens`, int64 up to the largest id in it."""
    counts_V = np.bincount(tokens)
    # frexp gives the exponent exactly; the logarithm of a power of two may be rounded down.
    exponents_V = np.frexp(np.maximum(counts_V, 1))[1].astype(np.int64) - 1
    return np.minimum(exponents_V, BINS - 1)


def describe(nats: Sequence[float], tokens: Sequence[int]) -> list[dict[str, Any]]:
    """For evaluation.json: the bins that hold any token, the rarest first, with their mean loss in nats per token."""
    return [
        {"occurrences": 2**index, "tokens": count, "loss": total / count}
        for index, (total, count) in enumerate(zip(nats, tokens, strict=True))
        if count
    ]
