"""Cleaned documents on disk: one Arrow file, mapped instead of loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from ava_core.data.sources.formats import Document

BATCH_BYTES = 16 * 2**20


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write the names and texts of `documents` to `path`, in order."""
    import pyarrow as pa

    schema = pa.schema([("name", pa.large_string()), ("text", pa.large_string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        names: list[str] = []
        texts: list[str] = []
        size = 0
        for document in documents:
            names.append(document.name)
            texts.append(document.text)
            size += len(document.text)
            if size >= BATCH_BYTES:
                writer.write_batch(pa.record_batch([names, texts], schema=schema))
                names, texts, size = [], [], 0
        writer.write_batch(pa.record_batch([names, texts], schema=schema))


class Column(Sequence[str]):
    """A column of the file, or a choice of its rows; a text is in memory only while it is used."""

    def __init__(self, values: Any, positions: Sequence[int] | None = None) -> None:
        self._values = values
        self._positions = range(len(values)) if positions is None else positions

    @classmethod
    def open(cls, path: Path, name: str) -> Column:
        """The column `name` of a file that `write_documents` wrote."""
        import pyarrow as pa

        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            return cls(reader.read_all()[name])

    def at(self, positions: Sequence[int]) -> Column:
        """The rows at `positions`, in that order."""
        return Column(self._values, [self._positions[position] for position in positions])

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Column: ...
    def __getitem__(self, index: int | slice) -> str | Column:
        if isinstance(index, slice):
            return Column(self._values, self._positions[index])
        return self._values[self._positions[index]].as_py()
