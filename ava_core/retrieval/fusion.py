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
    lexical: Sequence[int] | np.ndarray, dense: Sequence[int] | np.ndarray, weights: tuple[float, float]
) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a sum of weight / (60 + rank).

    Args:
        lexical: numbers of passages, the best first.
        dense: the same.
        weights: of both.

    Returns:
        All that are in either, the best first; equal ones by number.
    """
    ranks: dict[int, list[int | None]] = {}
    for column, ranking in enumerate((lexical, dense)):
        for rank, passage in enumerate(ranking, 1):
            ranks.setdefault(int(passage), [None, None])[column] = rank

    def score(places: list[int | None]) -> float:
        return sum(w / (RANK_CONSTANT + rank) for w, rank in zip(weights, places, strict=True) if rank is not None)

    hits = [Hit(passage, score(places), *places) for passage, places in ranks.items()]
    return sorted(hits, key=lambda hit: (-hit.score, hit.passage))
