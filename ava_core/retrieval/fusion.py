"""Making one ranking of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RANK_CONSTANT = 60
"""k of reciprocal rank fusion, as its authors have it."""


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        passage: its number in the index.
        score: what it is ordered by: fused, of BM25, or an inner product, as the search was.
        lexical_rank: its place among those found by words, from 1; None if it wasn't among them.
        dense_rank: the same of those found by meaning.
    """

    passage: int
    score: float
    lexical_rank: int | None = None
    dense_rank: int | None = None


def fuse(
    lexical: Sequence[int] | np.ndarray,
    dense: Sequence[int] | np.ndarray,
    weights: tuple[float, float],
    top_k: int | None = None,
) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a sum of weight / (60 + rank).

    Args:
        lexical: numbers of passages, the best first.
        dense: the same.
        weights: of both.
        top_k: how many are wanted; None: all that are in either.

    Returns:
        The best first; equal ones by number.
    """
    ranks = [{int(passage): rank for rank, passage in enumerate(ranking, 1)} for ranking in (lexical, dense)]
    scores: dict[int, float] = {}
    for weight, ranking in zip(weights, ranks, strict=True):
        for passage, rank in ranking.items():
            scores[passage] = scores.get(passage, 0.0) + weight / (RANK_CONSTANT + rank)
    ordered = sorted(scores, key=lambda passage: (-scores[passage], passage))[:top_k]
    return [Hit(passage, scores[passage], ranks[0].get(passage), ranks[1].get(passage)) for passage in ordered]
