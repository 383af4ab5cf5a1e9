"""How well an index finds what it should: recall, mean reciprocal rank, nDCG, and how long a search takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ava_core.retrieval.folder import Mode
from ava_core.retrieval.questions import Question
from ava_core.retrieval.retriever import Retriever

CUTOFFS = (1, 5, 10)
DEPTH = max(CUTOFFS)


@dataclass(frozen=True)
class Measured:
    """What came out of one way to search.

    Attributes:
        mode: hybrid, lexical or dense.
        ranks: of the first passage that answers each question, from 1; None: not among the first DEPTH.
        milliseconds: that each search took, the question's embedding included.
        found: the first passages' numbers for each question.
    """

    mode: Mode
    ranks: list[int | None]
    milliseconds: list[float]
    found: list[list[int]]

    @property
    def figures(self) -> dict[str, float]:
        """recall@k: questions answered by the first k; MRR@10; nDCG@10, of which one right passage is the ideal."""
        return {
            **{
                f"recall_{cutoff}": _mean(rank is not None and rank <= cutoff for rank in self.ranks)
                for cutoff in CUTOFFS
            },
            f"mrr_{DEPTH}": _mean(1 / rank if rank else 0.0 for rank in self.ranks),
            f"ndcg_{DEPTH}": _mean(1 / math.log2(1 + rank) if rank else 0.0 for rank in self.ranks),
        }

    @property
    def timings(self) -> dict[str, float]:
        """Median and 99th percentile of the time of a search, in milliseconds."""
        return {f"p{share}_ms": float(np.percentile(self.milliseconds, share)) for share in (50, 99)}


def measure(
    retriever: Retriever, questions: Sequence[Question], advance: Callable[[int], Any] = lambda _: None
) -> list[Measured]:
    """Ask all questions in every way that the index can be searched, the default way first.

    Whoever measures sees everything: passages with access labels are found too.
    """
    modes: list[Mode] = ["lexical"] if retriever.embedder is None else ["hybrid", "lexical", "dense"]
    return [_measure(retriever, questions, mode, advance, number * len(questions)) for number, mode in enumerate(modes)]


def _measure(
    retriever: Retriever, questions: Sequence[Question], mode: Mode, advance: Callable[[int], Any], done: int
) -> Measured:
    measured = Measured(mode, [], [], [])
    labels = retriever.index.passages.labels
    for number, question in enumerate(questions, 1):
        started = time.perf_counter()
        found = retriever.search(question.question, DEPTH, mode=mode, labels=labels)
        measured.milliseconds.append(1000 * (time.perf_counter() - started))
        ranks = [rank for rank, one in enumerate(found, 1) if question.is_answered_by(one.passage)]
        measured.ranks.append(ranks[0] if ranks else None)
        measured.found.append([one.number for one in found])
        advance(done + number)
    return measured


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
