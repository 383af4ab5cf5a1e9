"""The best of many scores, in an order that doesn't depend on how they were found: equal scores by number."""

from __future__ import annotations

import numpy as np

_BLOCK = 256


def best(scores: np.ndarray, k: int, above: float = 0.0) -> np.ndarray:
    """The numbers of the k highest of the scores above `above`, (n,), the best first; fewer if there are fewer.

    Of many scores most are never compared: k blocks have maxima at or above the k-th highest of all maxima, so
    what is below that isn't among the best k.
    """
    blocks = len(scores) // _BLOCK
    if len(scores) <= k:
        bound = above
    elif blocks > k:
        maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - k)[blocks - k]
    else:
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= bound if bound > above else scores > above)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
