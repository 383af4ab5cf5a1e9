"""Cleaned documents on disk: one Arrow file, mapped instead of loaded, and beside it what the filters counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ava_core.config.data import DataConfig
from ava_core.data.cleaning import Cleaner, merge_reports
from ava_core.data.sources import read_documents
from ava_core.data.sources.source import Document, Source

if TYPE_CHECKING:
    from ava_core.progress import Progress

DOCUMENTS, REPORT = "documents.arrow", "report.json"
BATCH_BYTES = 16 * 2**20
"""Text in one record batch, at least; the last may hold less."""


def clean_documents(config: DataConfig, sources: list[Source], folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the cleaned documents of `sources` and the report of the filters into `folder`, and return the report.

    Raises:
        AvaError: a source can't be read.
    """
    cleaner = Cleaner(config.cleaning)
    total = max(1, sum(source.size for source in sources))
    with progress.task("read and clean", total) as advance:

        def cleaned() -> Iterator[Document]:
            for document in read_documents(sources):
                advance(min(cleaner.bytes_in, total - 1), documents=f"{cleaner.documents_in:,}")
                kept = cleaner.clean(document)
                if kept is not None:
                    yield kept

        write_documents(folder / DOCUMENTS, cleaned())
        advance(total, documents=f"{cleaner.documents_in:,}")
    return _write_report(folder, cleaner.report())


def join_parts(parts: list[Path], folder: Path) -> dict[str, Any]:
    """Write what `clean_documents` would have written for the parts' sources together, and return the report."""

    def documents() -> Iterator[Document]:
        for part in parts:
            names, texts = (Column.open(part / DOCUMENTS, name) for name in ("name", "text"))
            yield from map(Document, names, texts)

    write_documents(folder / DOCUMENTS, documents())
    return _write_report(folder, merge_reports([read_report(part) for part in parts]))


def read_report(folder: Path) -> dict[str, Any]:
    """What the filters counted in a folder of `clean_documents` or `join_parts`."""
    return json.loads((folder / REPORT).read_text())


def _write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    (folder / REPORT).write_text(json.dumps(report, ensure_ascii=False))
    return report


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
    """A column of the file, or some of its rows; a text is in memory only while it is used."""

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
