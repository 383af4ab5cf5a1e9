"""Documents in files: what each `format` of `data.sources` is, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def read_file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """The documents of one file.

    Args:
        path: the file.
        name: how documents and messages name it.
        reading: how it is read.

    Raises:
        AvaError: the file can't be read as what it should be; the message says where.
    """
    return FORMATS[reading.format].read(path, name, reading)


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


def _read_jsonl(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
                raise AvaError(f"{path}: line {number}: can't be read as JSON ({reason}): mend or remove it") from error
            if not isinstance(record, dict):
                raise AvaError(
                    f"{path}: line {number}: is not a JSON object: each line needs one with `{reading.text_field}`"
                )
            if reading.text_field not in record:
                raise missing_field(f"{path}: line {number}", reading.text_field, record)
            yield document_of_row(record[reading.text_field], f"{name}:{number}", reading.text_field)


def _read_parquet(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            if reading.text_field not in file.schema_arrow.names:
                raise missing_field(str(path), reading.text_field, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1024, columns=[reading.text_field])
            yield from _rows((batch.column(0) for batch in batches), name, reading.text_field)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _read_arrow(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            # `datasets` writes the streaming format, other tools the file format, which begins with its name.
            indexed = file.read(6) == b"ARROW1"
            file.seek(0)
            with (pa.ipc.open_file if indexed else pa.ipc.open_stream)(file) as reader:
                names = reader.schema.names
                if reading.text_field not in names:
                    raise missing_field(str(path), reading.text_field, names)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
                columns = (batch.column(names.index(reading.text_field)) for batch in batches)
                yield from _rows(columns, name, reading.text_field)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "Arrow", error) from error


def _rows(columns: Iterable[Any], name: str, text_field: str) -> Iterator[Document]:
    row = 0
    for column in columns:
        for value in column:
            row += 1
            yield document_of_row(value.as_py(), f"{name}:{row}", text_field)


def _unreadable(path: Path, kind: str, error: Exception) -> AvaError:
    reason = first_line(error)
    return AvaError(f"{path}: can't be read as {kind} ({reason}): mend it, or set the source's format")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffixes: of the files that are read when a folder is named; a glob or a file may have any suffix.
        read: gives the documents of a file, with the arguments of `read_file`.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, str, Reading], Iterator[Document]]


FORMATS = {
    "text": Format((".txt", ".text"), _read_whole),
    "markdown": Format((".md", ".markdown"), _read_whole),
    "jsonl": Format((".jsonl", ".ndjson"), _read_jsonl),
    "parquet": Format((".parquet",), _read_parquet),
    "arrow": Format((".arrow", ".feather"), _read_arrow),
}
"""The formats by their names in `data.sources`."""
