"""The best of many scores, in an order that doesn't depend on how they were found: equal scores by number."""

from __future__ import annotations

import numpy as np

_BLOCK = 1024


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The numbers of the k highest of the scores above 0, (n,), the best first; fewer if there are fewer.

    Most of a million scores are never compared: k blocks have maxima at or above the k-th highest of all maxima, so
    what is below that isn't among the best k.
    """
    blocks = len(scores) // _BLOCK
    if blocks > k > 0:
        maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - k)[blocks - k]
        candidates = np.flatnonzero((scores >= bound) & (scores > 0)) if bound > 0 else np.flatnonzero(scores > 0)
    else:
        candidates = np.flatnonzero(scores > 0)
    return candidates[in_order(scores[candidates])[:k]]


def in_order(scores: np.ndarray) -> np.ndarray:
    """Positions from the highest score to the lowest; equal ones stay as they stand."""
    return np.argsort(-scores, kind="stable")
