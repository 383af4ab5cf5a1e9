"""The sources of `data.sources`: where their documents come from, and a digest of what they hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, Protocol

from ava_core.config.schema import DataConfig, SourceConfig
from ava_core.data.corpora import CORPORA, Corpus, digest_files
from ava_core.data.sources.formats import SUFFIXES, Document, Reading, document_of_row, missing_field, read_file
from ava_core.data.sources.links import files_to_read, is_readable
from ava_core.errors import AvaError


class Source(Protocol):
    """Somewhere documents come from."""

    @property
    def name(self) -> str:
        """How the data set card names it; the same on every machine."""
        ...

    @property
    def license(self) -> str | None:
        """What allows its use, if that is known."""
        ...

    @property
    def language(self) -> str | None:
        """ISO 639-1 code, if that is known."""
        ...

    @property
    def size(self) -> int:
        """Bytes to read, to show progress; 0 where that isn't known before."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents, in an order that is always the same."""
        ...

    def files_apart(self) -> list[Source]:
        """Sources that hold the same documents in the same order, as small as can be read by themselves."""
        ...

    def digest(self) -> str:
        """SHA-256 over what the documents are read from."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Files that were found below `root`."""

    name: str
    root: Path
    files: tuple[Path, ...]
    reading: Reading
    corpus: Corpus | None = None

    @property
    def license(self) -> str | None:
        return self.corpus.license if self.corpus else None

    @property
    def language(self) -> str | None:
        return self.corpus.language if self.corpus else None

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def documents(self) -> Iterator[Document]:
        for path in self.files:
            yield from read_file(path, path.relative_to(self.root).as_posix(), self.reading)

    def files_apart(self) -> list[Source]:
        return [replace(self, files=(path,)) for path in self.files]

    def digest(self) -> str:
        return self.corpus.digest if self.corpus else digest_files(self.root, list(self.files))


@dataclass(frozen=True)
class HubSource:
    """A data set that `datasets` loads by name, from the Hugging Face Hub or from a local folder."""

    config: SourceConfig
    license: str | None = None
    language: str | None = None
    size: int = 0

    @property
    def name(self) -> str:
        return Path(self.config.hub or "").name if self._local else f"{self.config.hub} (split {self.config.split})"

    @property
    def _local(self) -> Path | None:
        folder = Path(self.config.hub or "")
        return folder if folder.is_dir() else None

    def documents(self) -> Iterator[Document]:
        from datasets import load_dataset

        config = self.config
        try:
            rows: Any = load_dataset(
                config.hub, split=config.split, revision=config.revision, streaming=config.streaming
            )
        except Exception as error:
            raise _hub_error(config, error) from error
        if rows.column_names is not None and config.text_field not in rows.column_names:
            raise missing_field(f"hub {config.hub}", config.text_field, rows.column_names)
        for number, row in enumerate(rows, start=1):
            if config.text_field not in row:
                raise missing_field(f"hub {config.hub}: row {number}", config.text_field, row)
            yield document_of_row(row[config.text_field], f"{config.split}:{number}", config.text_field)

    def files_apart(self) -> list[Source]:
        return [self]

    def digest(self) -> str:
        if self._local:
            return digest_files(self._local, files_to_read(self._local))
        return hashlib.sha256(f"{self.config.hub}@{self._commit()}".encode()).hexdigest()

    def _commit(self) -> str:
        """The commit that the revision stands for: a branch or tag may move, so its name can't tell what was read."""
        if re.fullmatch(r"[0-9a-f]{40}", self.config.revision or ""):
            return str(self.config.revision)
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(str(self.config.hub), revision=self.config.revision, timeout=30).sha)
        except Exception as error:
            raise _hub_error(self.config, error) from error


def open_sources(config: DataConfig, data: Path | None) -> list[Source]:
    """The sources of a configuration, found but not yet read.

    Args:
        config: the section `data`.
        data: the folder given with --data, which corpora and relative paths are read from.

    Raises:
        AvaError: a file, a folder or the corpus is missing or empty.
        IntegrityError: the corpus is not the one that the code knows.
    """
    if data is not None and not data.is_dir():
        raise AvaError(f"--data {data}: no such folder: run `make data`, or give the folder that holds the corpus")
    return [_open(source, config, data) for source in config.sources]


def read_documents(sources: list[Source]) -> Iterator[Document]:
    """All documents of all sources, in order."""
    for source in sources:
        yield from source.documents()


def part_of(sources: list[Source], index: int, count: int) -> list[Source]:
    """One of `count` runs of files, of about equal bytes; one after the other they hold what `sources` hold.

    Args:
        sources: all sources.
        index: which part, from 1.
        count: how many there are. With more parts than files some are empty.
    """
    files = [file for source in sources for file in source.files_apart()]
    sizes = [max(file.size, 1) for file in files]
    # A file belongs to the part in which its middle lies.
    middles = (end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True))
    return [file for file, middle in zip(files, middles, strict=True) if int(middle * count / sum(sizes)) == index - 1]


def digest_sources(config: DataConfig, data: Path | None) -> str:
    """SHA-256 over what all sources hold, wherever they lie; raises as `open_sources` does."""
    digests = [source.digest() for source in open_sources(config, data)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _open(source: SourceConfig, config: DataConfig, data: Path | None) -> Source:
    if source.hub is not None:
        if Path(source.hub).is_dir():
            files_to_read(Path(source.hub))  # `datasets` follows every link
        return HubSource(source)
    if source.corpus is not None:
        corpus = CORPORA[source.corpus]
        if data is None:
            raise AvaError(f"corpus {corpus.name}: --data is missing: run `make data`, then give --data data/raw")
        root = data / corpus.name
        reading = Reading(format="markdown", text_field=source.text_field, separator=config.document_separator)
        return FileSource(corpus.name, root, tuple(corpus.verify(root)), reading, corpus)
    reading = Reading(format=source.format, text_field=source.text_field, separator=config.document_separator)
    root, files = _find(data or Path(), source)
    return FileSource(Path(str(source.path)).name, root, files, reading)


def _find(base: Path, source: SourceConfig) -> tuple[Path, tuple[Path, ...]]:
    """The folder that names count from, and the files, in the order of their names."""
    pattern = Path(str(source.path))
    path = base / pattern
    if path.is_file():
        return _not_empty(path.parent, [path], f"{path}: the file is empty: give a file with text")
    if path.is_dir():
        suffixes = SUFFIXES[source.format]
        found = files_to_read(path, suffixes)
        return _not_empty(
            path,
            found,
            f"{path}: the folder holds no text in files ending in {' or '.join(suffixes)}: set the source's format,"
            " or give a glob such as DIR/*.ext",
        )
    if not has_magic(str(pattern)):
        raise AvaError(
            f"{path}: no such file or folder: correct data.sources, or --data, which relative paths count from"
        )
    plain = Path(*takewhile(lambda part: not has_magic(part), pattern.parts))
    root = base / plain
    # Not Path.glob: before Python 3.13 its `**` finds folders only.
    found = [root / item for item in glob(str(pattern.relative_to(plain)), root_dir=root, recursive=True)]  # noqa: PTH207
    found = [item for item in found if is_readable(item, root)]
    return _not_empty(root, found, f"{path}: no file with text matches: correct data.sources, or --data")


def _not_empty(root: Path, found: list[Path], complaint: str) -> tuple[Path, tuple[Path, ...]]:
    files = sorted(item for item in found if item.is_file())
    if not any(item.stat().st_size for item in files):
        raise AvaError(complaint)
    return root, tuple(files)


def _hub_error(config: SourceConfig, error: Exception) -> AvaError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    place = f"{config.hub}, split {config.split}" + (f", revision {config.revision}" if config.revision else "")
    return AvaError(
        f"hub {place}: can't be loaded ({reason}): check the name and the network, or give files with `path`"
    )
