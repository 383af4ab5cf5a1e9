"""Documents in files: what each `format` of `data.sources` is, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.data.sources.source import Document, document_of_row, missing_field
from ava_core.errors import AvaError, first_line
from ava_core.files import parse_json


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read.

    Attributes:
        format: a key of `FORMATS`.
        text_field: the column that holds the text, for jsonl, parquet and arrow.
        separator: splits a text or Markdown file into documents; None: a file is one document.
    """

    format: str
    text_field: str
    separator: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A record of a file, or of a data set.

    Attributes:
        name: where it came from, relative to its source: the same on every machine.
        values: by column.
    """

    name: str
    values: Mapping[str, Any]


def read_rows(path: Path, name: str, format: str) -> Iterator[Row]:
    """The records of one file of a format that has some, with all columns; raises as `read_file`."""
    rows = FORMATS[format].rows
    assert rows is not None  # the configuration allows no other
    return rows(path, name, None)


def read_file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """The documents of one file.

    Args:
        path: the file.
        name: how documents and messages name it.
        reading: how it is read.

    Raises:
        AvaError: the file can't be read as what it should be; the message says where.
    """
    rows = FORMATS[reading.format].rows
    if rows is None:
        return _read_whole(path, name, reading)
    column = reading.text_field
    return (document_of_row(row.values[column], row.name, column) for row in rows(path, name, column))


def _read_whole(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    text = _decode(path.read_bytes(), path)
    markdown = reading.format == "markdown"
    if reading.separator is None:
        yield Document(name, text, markdown)
        return
    for number, part in enumerate(text.replace("\r\n", "\n").split(reading.separator), start=1):
        if part.strip():
            yield Document(f"{name}#{number}", part, markdown)


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AvaError(
            f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8: convert the file"
            " (such as `iconv -f latin1 -t utf-8`)"
        ) from error


def _jsonl_rows(path: Path, name: str, column: str | None) -> Iterator[Row]:
    wanted = f" with `{column}`" if column else ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            try:
                record = parse_json(line)
            except ValueError as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
                raise AvaError(f"{place}: can't be read as JSON ({reason}): mend or remove it") from error
            if not isinstance(record, dict):
                raise AvaError(f"{place}: is not a JSON object: each line needs one{wanted}")
            if column is not None and column not in record:
                raise missing_field(place, column, record)
            yield Row(f"{name}:{number}", record)


def _parquet_rows(path: Path, name: str, column: str | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require_column(path, column, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1024, columns=None if column is None else [column])
            yield from _rows(batches, name)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _arrow_rows(path: Path, name: str, column: str | None) -> Iterator[Row]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            # `datasets` writes the streaming format, other tools the file format, which begins with its name.
            indexed = file.read(6) == b"ARROW1"
            file.seek(0)
            with (pa.ipc.open_file if indexed else pa.ipc.open_stream)(file) as reader:
                _require_column(path, column, reader.schema.names)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
                yield from _rows((batch if column is None else batch.select([column]) for batch in batches), name)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Arrow", error) from error


def _require_column(path: Path, column: str | None, names: Iterable[str]) -> None:
    if column is not None and column not in names:
        raise missing_field(str(path), column, names)


def _rows(batches: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(f"{name}:{number}", values)


def _unreadable(path: Path, kind: str, error: Exception) -> AvaError:
    reason = first_line(error)
    return AvaError(f"{path}: can't be read as {kind} ({reason}): mend it, or set the source's format")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffixes: of the files that are read when a folder is named; a glob or a file may have any suffix.
        rows: gives the records of a file from its path, its name, and the one column that is wanted, or None for all;
            None: a file is text.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Path, str, str | None], Iterator[Row]] | None = None


FORMATS = {
    "text": Format((".txt", ".text")),
    "markdown": Format((".md", ".markdown")),
    "jsonl": Format((".jsonl", ".ndjson"), _jsonl_rows),
    "parquet": Format((".parquet",), _parquet_rows),
    "arrow": Format((".arrow", ".feather"), _arrow_rows),
}
"""The formats by their names in `data.sources`."""
