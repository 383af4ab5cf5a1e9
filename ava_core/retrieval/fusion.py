"""Making one ranking of two: by words, and by meaning as far as the words leave it open.

A sum of scores ranks better than ranks alone (Bruch, Gai and Ingber 2023, arXiv 2210.11934), if they can be compared.
BM25's have a ceiling for each query, the sum of its words' rarities: a passage's part of it says how much of the query
it covers. Where some passage covers nearly all of it, it is the one that was meant, and meaning may only order passages
that are alike; the less the best one covers, the more the cosines count. The constants are of two sets of questions:
`benchmarks.retrieval_quality`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SATURATED = 0.7
"""Part of the ceiling that counts as all of it: more takes words that are repeated over and over."""
MEANING = 1.5
"""Weight of a squared cosine where no passage has a word of the query."""
TIE = 1e-6
"""Of BM25's own score, for passages that cover all."""


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


@dataclass(frozen=True)
class Candidates:
    """Passages that either search found, with the scores of both.

    Attributes:
        numbers: of the passages, (n,), ascending.
        bm25: their scores by words, (n,).
        ceiling: what BM25 could give for the query.
        cosines: their vectors' inner products with the query's, (n,).
    """

    numbers: np.ndarray
    bm25: np.ndarray
    ceiling: float
    cosines: np.ndarray

    def scores(self) -> np.ndarray:
        """What they are ordered by, (n,) of float64: coverage + MEANING (1 - best coverage)^2 max(cosine, 0)^2."""
        if not len(self.numbers):
            return np.zeros(0)
        bm25 = self.bm25.astype(np.float64)
        coverage = np.minimum(bm25 / (SATURATED * self.ceiling), 1.0) if self.ceiling > 0 else np.zeros(len(bm25))
        weight = MEANING * (1.0 - coverage.max()) ** 2
        return coverage + weight * np.maximum(self.cosines.astype(np.float64), 0.0) ** 2 + TIE * bm25


def fuse(candidates: Candidates, lexical: np.ndarray, dense: np.ndarray, top_k: int) -> list[Hit]:
    """The best candidates, the best first; equal ones by number.

    Args:
        candidates: what is in either ranking.
        lexical: numbers of the passages found by words, the best first.
        dense: of those found by meaning.
        top_k: how many are wanted.
    """
    ranks = [{int(passage): rank for rank, passage in enumerate(ranking, 1)} for ranking in (lexical, dense)]
    scores = candidates.scores()
    hits = []
    for place in np.lexsort((candidates.numbers, -scores))[:top_k]:
        number = int(candidates.numbers[place])
        hits.append(Hit(number, float(scores[place]), ranks[0].get(number), ranks[1].get(number)))
    return hits
