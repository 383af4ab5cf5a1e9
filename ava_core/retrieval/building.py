"""Building an index folder: passages and their vectors go in, in order; the folder appears whole or not at all.

An index is a function of its passages, their vectors and its settings: the same give the same bytes. So one that is
brought up to date, with the vectors of passages that didn't change taken over from the former one, equals one that is
built anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.errors import AvaError
from ava_core.files import unfinished_folder, whole_folder
from ava_core.retrieval.lexical_build import LexicalWriter
from ava_core.retrieval.manifest import IndexManifest, write_manifest
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.passage_store import PassageWriter
from ava_core.retrieval.vectors_build import VectorsWriter

PASSAGES, LEXICAL, VECTORS = "passages", "lexical", "vectors"


class IndexBuilder:
    """What `building_index` gives to fill."""

    def __init__(self, folder: Path, scratch: Path, dimension: int) -> None:
        for name in (PASSAGES, LEXICAL, *([VECTORS] if dimension else [])):
            (folder / name).mkdir()
        self._passages = PassageWriter(folder / PASSAGES)
        self._lexical = LexicalWriter(folder / LEXICAL, scratch)
        self._vectors = VectorsWriter(folder / VECTORS, dimension) if dimension else None

    def add(self, passages: Sequence[Passage], vectors: np.ndarray | None = None) -> None:
        """Append passages, those of a document one after another, with their vectors of length 1.

        Args:
            passages: to append.
            vectors: (passages, dimension); None if the index has none.

        Raises:
            AvaError: not as many vectors as passages, or such as the index doesn't take.
            OSError: no space.
        """
        if (0 if vectors is None else len(vectors)) != (len(passages) if self._vectors else 0):
            raise AvaError(f"{0 if vectors is None else len(vectors)} vectors for {len(passages)} passages")
        if self._vectors and vectors is not None:
            self._vectors.add(vectors)
        self._passages.add(passages)
        self._lexical.add(passage.searched for passage in passages)

    def close(self) -> tuple[int, int]:
        """Finish all parts. Returns the numbers of passages and documents."""
        self._passages.close()
        self._lexical.close()
        if self._vectors:
            self._vectors.close()
        return self._passages.num_passages, self._passages.num_documents


@contextmanager
def building_index(
    path: Path, *, embedding: str, dimension: int, settings: Mapping[str, Any]
) -> Iterator[IndexBuilder]:
    """Build an index. At the end of the block it is at `path`; after an error what was there is there still.

    Args:
        path: of the index's folder; the folders above it are made.
        embedding: name of what makes the vectors; empty for an index that is searched by words alone.
        dimension: of the vectors; 0 for none.
        settings: what the passages are made with, kept in index.json.

    Raises:
        AvaError: no passage was added, another process builds an index there, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The scratch lies beside, where a kill leaves it for the next builder to remove.
        with (
            _only_builder(path),
            unfinished_folder(path.with_name(f"{path.name}-runs")) as scratch,
            whole_folder(path) as folder,
        ):
            builder = IndexBuilder(folder, scratch, dimension)
            yield builder
            passages, documents = builder.close()
            if not passages:
                raise AvaError(f"{path}: no passages to build an index of: the sources are empty")
            write_manifest(folder, IndexManifest(embedding, dimension, passages, documents, dict(settings)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AvaError(
                f"{path}: the disk is full: free some space, and build again; what was there before is there still"
            ) from error
        raise


@contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside the index while it is built; one that a killed builder left is free."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock)
    if descriptor is None:
        raise AvaError(f"{path} is being built by another process: wait for it, or name another folder")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process does."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder had removed it by then
