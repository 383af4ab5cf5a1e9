"""Lexical search: BM25 with the columns of bm25s, mapped into memory."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np

from ava_core.errors import IntegrityError
from ava_core.retrieval.ranking import best
from ava_core.retrieval.vocabulary import Vocabulary
from ava_core.retrieval.words import words

MOST_WORDS = 256
"""Different words of a query that are looked at, the rarest of a longer one: the others tell little."""

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every empty query


class Lexical:
    """Searches what `LexicalWriter` wrote.

    Args:
        folder: of the index.

    Raises:
        IntegrityError: a file is missing or isn't what it was.
    """

    def __init__(self, folder: Path) -> None:
        self._vocabulary = Vocabulary(folder)
        try:
            # Where no passage has a word, there is an empty file, which can't be mapped.
            self._bm25 = bm25s.BM25.load(folder, mmap=len(self._vocabulary) > 0, load_vocab=False)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise IntegrityError(f"{folder} isn't a whole lexical index ({error}): build the index anew") from error
        columns = self._bm25.scores
        for name in ("data", "indices", "indptr"):
            columns[name] = columns[name].view(np.ndarray)
        self._frequencies = np.diff(columns["indptr"])
        whole = int(columns["indptr"][-1]) == len(columns["data"]) == len(columns["indices"])
        if not whole or len(self._frequencies) != len(self._vocabulary):
            raise IntegrityError(f"{folder} has files of different sizes: build the index anew")

    def __len__(self) -> int:
        return self._bm25.scores["num_docs"]

    def search(self, query: str, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best passages that have a word of the query.

        Args:
            query: any text.
            k: at most as many.
            allowed: (passages,) of bool, which may be found; None: all.

        Returns:
            Numbers (n,) of int64 and scores (n,) of float32, the best first, equal ones by number.
        """
        scores, _ = self.scores(query, allowed)
        found = best(scores, k)
        return found, scores[found]

    def scores(self, query: str, allowed: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Of all passages, (passages,) of float32, 0 for those that aren't allowed; and what no passage can reach.

        BM25 tends to a word's inverse document frequency the more often a passage has it (Robertson and Zaragoza 2009,
        section 3.5), so their sum is the ceiling.
        """
        numbers = self._of_query(query)
        if not numbers:
            return np.zeros(len(self), np.float32), 0.0
        having = self._frequencies[numbers].astype(np.float64)
        ceiling = float(np.log1p((len(self) - having + 0.5) / (having + 0.5)).sum())
        return self._bm25.get_scores_from_ids(numbers, weight_mask=allowed), ceiling

    def _of_query(self, query: str) -> list[int]:
        """The numbers of a query's words, as often as it has them, in an order that doesn't depend on the query's."""
        counted = Counter(self._vocabulary.numbers(words(query)))
        if len(counted) > MOST_WORDS:
            rarest = sorted(counted, key=lambda number: (self._frequencies[number], number))[:MOST_WORDS]
            counted = Counter({number: counted[number] for number in rarest})
        return sorted(counted.elements())
