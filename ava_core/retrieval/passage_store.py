"""Passages on disk: written one after another, read by number through memory maps.

| file | what |
|---|---|
| passages.jsonl | a line `[start, end, heading, text]` per passage; `passages.offsets.npy` says where each begins |
| documents.jsonl | a line `[name, source digest]` per document, in the order of the passages |
| document.npy | uint32: the document of each passage |
| label.npy, labels.json | uint16: the label of each passage, as its number in the list; 0 is the empty label |
| digest.npy | the SHA-256 of each passage, 32 bytes |
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ava_core.errors import AvaError, IntegrityError
from ava_core.files import parse_json, write_json
from ava_core.retrieval.arrays import ArrayWriter, Rows, RowsWriter, open_array
from ava_core.retrieval.passage import Passage

MOST_LABELS = 1 << 16
_BLOCK = 4096


class PassageWriter:
    """Writes the files of a store into a folder that exists; passages of one document follow one another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._passages = RowsWriter(folder / "passages.jsonl")
        self._documents = RowsWriter(folder / "documents.jsonl")
        self._document = ArrayWriter(folder / "document.npy", np.uint32)
        self._label = ArrayWriter(folder / "label.npy", np.uint16)
        self._digest = ArrayWriter(folder / "digest.npy", np.uint8, (32,))
        self._labels: dict[str, int] = {"": 0}
        self._current: tuple[str, str] | None = None
        self.num_passages = self.num_documents = 0

    def add(self, passages: Iterable[Passage]) -> None:
        """Append passages.

        Raises:
            AvaError: more labels than 65,536.
            OSError: no space.
        """
        documents, labels, lines, digests = [], [], [], bytearray()
        for passage in passages:
            documents.append(self._number_of_document(passage))
            labels.append(self._labels.setdefault(passage.label, len(self._labels)))
            digests += bytes.fromhex(passage.digest)
            lines.append(_line([passage.start, passage.end, passage.heading, passage.text]))
        self.num_passages += len(labels)
        if len(self._labels) > MOST_LABELS:
            raise AvaError(f"more than {MOST_LABELS:,} access labels: group those that the same callers may see")
        self._passages.extend(lines)
        self._document.append(np.array(documents, np.uint32))
        self._label.append(np.array(labels, np.uint16))
        self._digest.append(np.frombuffer(digests, np.uint8).reshape(-1, 32))

    def close(self) -> None:
        for file in (self._passages, self._documents, self._document, self._label, self._digest):
            file.close()
        write_json(self._folder / "labels.json", list(self._labels))

    def _number_of_document(self, passage: Passage) -> int:
        document = (passage.document, passage.source_digest)
        if document != self._current:
            self._documents.extend([_line(list(document))])
            self._current = document
            self.num_documents += 1
        return self.num_documents - 1


class PassageStore:
    """Reads what `PassageWriter` wrote.

    Args:
        folder: of the store.

    Raises:
        IntegrityError: a file is missing or isn't what it was.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "passages.jsonl"
        try:
            self._passages, self._documents = Rows(self._path), Rows(folder / "documents.jsonl")
            self.labels: list[str] = parse_json((folder / "labels.json").read_bytes())
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{folder} isn't a whole store of passages ({error}): build the index anew") from error
        self._document, self._label = open_array(folder / "document.npy"), open_array(folder / "label.npy")
        self.digests = open_array(folder / "digest.npy")
        if not len(self) == len(self._document) == len(self._label) == len(self.digests):
            raise IntegrityError(f"{folder} has files of different numbers of passages: build the index anew")

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, number: int) -> Passage:
        try:
            start, end, heading, text = parse_json(self._passages[number])
            name, source_digest = parse_json(self._documents[int(self._document[number])])
            label = self.labels[int(self._label[number])]
        except ValueError as error:
            raise IntegrityError(f"{self._path}: passage {number:,} isn't readable: build the index anew") from error
        return Passage(text, name, start, end, heading, source_digest, label)

    def __iter__(self) -> Iterator[Passage]:
        return (self[number] for number in range(len(self)))

    def documents(self) -> Iterator[tuple[str, str, int, int]]:
        """Name, source digest, first passage and one past the last, of each document in turn."""
        firsts = np.searchsorted(self._document, np.arange(len(self._documents) + 1))
        for number in range(len(self._documents)):
            name, source_digest = parse_json(self._documents[number])
            yield name, source_digest, int(firsts[number]), int(firsts[number + 1])

    def visible(self, labels: Collection[str]) -> np.ndarray | None:
        """Which passages a caller with these labels may see, (passages,) of bool; None if that is all of them.

        Those without a label are seen by everyone.
        """
        table = np.array([not name or name in labels for name in self.labels])
        return None if table.all() else table[self._label]

    def find(self, digests: Iterable[str]) -> np.ndarray:
        """The number of a passage with each digest, the first if there are several; -1 if there is none. int64.

        From the first call on, 16 bytes per passage are kept in memory.
        """
        starts, order = self._by_digest
        return np.array([self._find(bytes.fromhex(digest), starts, order) for digest in digests], np.int64)

    @cached_property
    def _by_digest(self) -> tuple[np.ndarray, np.ndarray]:
        """The first 8 bytes of all digests, and the order that sorts them."""
        starts = np.zeros(len(self), np.uint64)
        for at in range(0, len(self), _BLOCK):
            starts[at : at + _BLOCK] = np.array(self.digests[at : at + _BLOCK, :8]).view(np.uint64)[:, 0]
        return starts, np.argsort(starts, kind="stable")

    def _find(self, digest: bytes, starts: np.ndarray, order: np.ndarray) -> int:
        start = np.frombuffer(digest[:8], np.uint64)[0]
        at = int(np.searchsorted(starts, start, sorter=order))
        while at < len(order) and starts[order[at]] == start:
            if self.digests[order[at]].tobytes() == digest:
                return int(order[at])
            at += 1
        return -1


def _line(values: list[str | int]) -> bytes:
    # What isn't ASCII is escaped only where it can't be UTF-8 (lone surrogates): text of any script stays small.
    try:
        return f"{json.dumps(values, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(values)}\n".encode()
