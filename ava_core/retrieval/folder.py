"""An index folder, opened and searched."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from pathlib import Path
from typing import Literal

import numpy as np

from ava_core.errors import AvaError
from ava_core.retrieval.building import LEXICAL, PASSAGES, VECTORS
from ava_core.retrieval.fusion import Candidates, Hit, fuse
from ava_core.retrieval.lexical import Lexical
from ava_core.retrieval.manifest import IndexManifest, read_manifest
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.passage_store import PassageStore
from ava_core.retrieval.ranking import best
from ava_core.retrieval.vectors import Vectors

Mode = Literal["hybrid", "lexical", "dense"]

_DEPTH = 100
"""Of each ranking that are fused, at least."""
_DEPTH_PER_RESULT = 4
_MOST_MASKS = 16
_TRIES = 5


class Index:
    """An open index. What it reads is mapped into memory, so opening is quick, and pages are shared between processes.

    Args:
        manifest: of the index.
        passages: its passages.
        lexical: search by words.
        vectors: search by meaning; None: the index has no vectors.
    """

    def __init__(
        self, manifest: IndexManifest, passages: PassageStore, lexical: Lexical, vectors: Vectors | None
    ) -> None:
        self.manifest, self.passages, self._lexical, self.vectors = manifest, passages, lexical, vectors
        self._masks: dict[frozenset[str], np.ndarray | None] = {}

    @classmethod
    def open(cls, folder: Path, *, embedding: str | None = None, verify: bool = False) -> Index:
        """Open an index folder.

        Args:
            folder: of the index.
            embedding: name of what makes the queries' vectors; None: none will.
            verify: look at every byte of it.

        Raises:
            ConfigError: there is no index.
            AvaError: of another version of the format, or its vectors are of another embedding.
            IntegrityError: a file is missing, cut or changed; it is named.
        """
        for _ in range(_TRIES):
            before = _identity(folder)
            try:
                index = cls._open(folder, verify)
            except (AvaError, OSError):
                if _identity(folder) == before:
                    raise
                continue
            if _identity(folder) == before:
                break
        else:
            raise AvaError(f"{folder} is replaced again and again while it is opened: wait for its builder")
        if embedding is not None and embedding != index.manifest.embedding:
            raise AvaError(
                f"{folder} was built with the embedding {index.manifest.embedding or 'none'!r}, not {embedding!r}: "
                "set retrieval.embedding to the index's, or build it anew"
            )
        return index

    @classmethod
    def _open(cls, folder: Path, verify: bool) -> Index:
        manifest = read_manifest(folder, verify=verify)
        vectors = Vectors(folder / VECTORS) if manifest.dimension else None
        index = cls(manifest, PassageStore(folder / PASSAGES), Lexical(folder / LEXICAL), vectors)
        index._check(folder)
        return index

    def __len__(self) -> int:
        return len(self.passages)

    def search(
        self,
        query: str,
        vector: np.ndarray | None,
        top_k: int,
        *,
        mode: Mode = "hybrid",
        labels: Collection[str] = (),
    ) -> list[Hit]:
        """The best passages for a query.

        Args:
            query: its text; used in the modes `hybrid` and `lexical`.
            vector: of the query, (dimension,); used in the modes `hybrid` and `dense`.
            top_k: at most as many.
            mode: which searches are asked.
            labels: access labels that the caller has. Passages with others are left out before anything is ranked;
                those without a label are for everyone.

        Raises:
            AvaError: the mode needs a vector, and there is none or the index has none.
        """
        if mode != "lexical" and (self.vectors is None or vector is None):
            raise AvaError(f"search mode {mode!r} needs vectors, of the index and of the query: use 'lexical'")
        if top_k < 1:
            raise AvaError(f"top_k is {top_k}: it must be at least 1")
        allowed = self._visible(labels)
        if allowed is not None and not allowed.any():
            return []
        if mode == "hybrid" and self.vectors is not None and vector is not None:
            return self._both_ways(query, vector, top_k, allowed)
        if mode == "dense" and self.vectors is not None and vector is not None:
            found = self.vectors.search(vector, top_k, allowed)
        else:
            found = self._lexical.search(query, top_k, allowed)
        ranked = enumerate(zip(*found, strict=True), 1)
        return [Hit(int(number), float(score), **{f"{mode}_rank": rank}) for rank, (number, score) in ranked]

    def _both_ways(self, query: str, vector: np.ndarray, top_k: int, allowed: np.ndarray | None) -> list[Hit]:
        assert self.vectors is not None
        depth = max(_DEPTH, _DEPTH_PER_RESULT * top_k)
        bm25, ceiling = self._lexical.scores(query, allowed)
        lexical = best(bm25, depth)
        dense, _ = self.vectors.search(vector, depth, allowed)
        numbers = np.union1d(lexical, dense)
        candidates = Candidates(numbers, bm25[numbers], ceiling, self.vectors.products(vector, numbers))
        return fuse(candidates, lexical, dense, top_k)

    def known_vectors(self, passages: Sequence[Passage]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors that the index has of these passages, found by digest, so that they needn't be embedded again.

        Returns:
            Which of the passages have one, (passages,) of bool; the vectors of those, (known, dimension) of float16.
        """
        numbers = self.passages.find(passage.digest for passage in passages)
        known = numbers >= 0
        if self.vectors is None:
            return np.zeros(len(passages), bool), np.zeros((0, 0), np.float16)
        return known, self.vectors.vectors(numbers[known])

    def _visible(self, labels: Collection[str]) -> np.ndarray | None:
        """Which passages may be found with these labels; kept for the next search."""
        key = frozenset(labels).intersection(self.passages.labels)
        if key in (masks := self._masks):
            return masks[key]
        if len(masks) >= _MOST_MASKS:
            masks = self._masks = {}  # another thread may be reading the former ones
        return masks.setdefault(key, self.passages.visible(key))

    def _check(self, folder: Path) -> None:
        parts: list[Sized] = [self.passages, self._lexical, *([self.vectors] if self.vectors else [])]
        if any(len(part) != self.manifest.passages for part in parts):
            raise AvaError(f"{folder} has parts of different indexes: build it anew with `ava index`")


def _identity(folder: Path) -> int | None:
    """Another number once another folder is there."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None
