"""Vectors that are made once: taken over from a former index, or from an interrupted build of the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ava_core.files import write_whole
from ava_core.retrieval.embedding.embedder import Embedder
from ava_core.retrieval.passage import Passage

STORED = np.float16
"""What an index keeps, and so what vectors are rounded to before they are compared with anything."""


class Former(Protocol):
    """What an earlier index knows: `ava_core.retrieval.folder.Index`."""

    def known_vectors(self, passages: Sequence[Passage]) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass
class Origins:
    """Where vectors came from, and how many texts were longer than the embedding reads.

    `embedded` counts those of an interrupted build of the same index too: a count mustn't tell whether there was one.
    """

    embedded: int = 0
    taken_over: int = 0
    truncated: int = 0


class KeptVectors:
    """The vectors of passages, asked for in the same chunks whenever the same index is built.

    Args:
        embedder: makes those that there aren't yet.
        folder: for those of a build that may be interrupted.
        former: an index of the same embedding, or None.

    Attributes:
        origins: of the vectors given so far.
    """

    def __init__(self, embedder: Embedder, folder: Path, former: Former | None) -> None:
        self._embedder, self._folder, self._former = embedder, folder, former
        self._number = 0
        self.origins = Origins()
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, passages: Sequence[Passage]) -> np.ndarray:
        """(passages, dimension) float16, of unit length but for rounding."""
        path = self._folder / f"{self._number:06}-{_digest(passages)[:16]}.f16"
        self._number += 1
        known, vectors = self._known(passages)
        new = [passage for passage, there in zip(passages, known, strict=True) if not there]
        self.origins.embedded += len(new)
        self.origins.taken_over += len(passages) - len(new)
        self.origins.truncated += self._too_long(new)
        result = np.empty((len(passages), self._embedder.dimension), STORED)
        result[known] = vectors
        if new:
            result[~known] = self._embedded(path, new)
        return result

    def _known(self, passages: Sequence[Passage]) -> tuple[np.ndarray, np.ndarray]:
        if self._former is None:
            return np.zeros(len(passages), bool), np.empty((0, self._embedder.dimension), STORED)
        return self._former.known_vectors(passages)

    def _embedded(self, path: Path, passages: Sequence[Passage]) -> np.ndarray:
        shape = (len(passages), self._embedder.dimension)
        if path.is_file() and path.stat().st_size == shape[0] * shape[1] * np.dtype(STORED).itemsize:
            return np.fromfile(path, STORED).reshape(shape)
        vectors = self._embedder.embed([passage.searched for passage in passages]).astype(STORED)
        write_whole(path, vectors.tobytes())
        return vectors

    def _too_long(self, passages: Sequence[Passage]) -> int:
        most = self._embedder.max_tokens
        counts = self._embedder.count_tokens([passage.searched for passage in passages]) if most and passages else None
        return sum(count > most for count in counts) if counts and most else 0


def _digest(passages: Sequence[Passage]) -> str:
    return hashlib.sha256("".join(passage.digest for passage in passages).encode()).hexdigest()
