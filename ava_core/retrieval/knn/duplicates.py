"""Documents that a datastore must not hold, because text that is scored repeats them or is repeated by them.

A document counts as a repetition of another one where most of the shorter one's shingles (runs of words, as
`ava_core.data.deduplication` makes them) are in the longer one: that finds the same text, an edited copy, and also a
document that stands in a collection, which the Jaccard similarity of the two would not. Shingles are compared exactly,
by digests of 64 bits, not by signatures: the scored text is small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ava_core.data.deduplication import shingles

SHARE = 0.8
"""Of the shorter document's shingles."""
WORDS = 5
"""Of a shingle; both are what `data.deduplication` has by default."""


class Scored:
    """The documents that are scored, to compare others with.

    Args:
        texts: of the documents.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        parts = [_digests(text) for text in texts]
        self._sizes = np.asarray([len(part) for part in parts], np.int64)
        digests = np.concatenate([*parts, np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(parts)), self._sizes)
        order = np.argsort(digests, kind="stable")
        self._digests, self._owners = digests[order], owners[order]

    def repeats(self, text: str) -> bool:
        """Whether `text` repeats one of the documents, or is repeated by one."""
        mine = _digests(text)
        first = np.searchsorted(self._digests, mine, "left")
        counts = np.searchsorted(self._digests, mine, "right") - first
        begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
        places = np.repeat(first - begins, counts) + np.arange(counts.sum())
        common = np.bincount(self._owners[places], minlength=len(self._sizes))
        return bool((common >= SHARE * np.minimum(self._sizes, len(mine))).any())


def repeated(documents: Iterable[str], scored: Sequence[str]) -> list[int]:
    """Positions of the documents that repeat a scored one or are repeated by one, rising."""
    index = Scored(scored)
    return [position for position, text in enumerate(documents) if index.repeats(text)]


def _digests(text: str) -> np.ndarray:
    """Digests of the shingles, distinct and sorted, (n,) of uint64."""
    made = (hashlib.blake2b(shingle, digest_size=8).digest() for shingle in shingles(text, WORDS))
    return np.unique(np.frombuffer(b"".join(made), np.uint64))
