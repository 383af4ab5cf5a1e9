"""Where documents come from: each kind of source is the module here that is called as its key in `data.sources`.

A kind's module has `open_source(config, separator, data)`, which finds what its key names and gives a `Source`: how it
is read, and what of it enters the digest. What can be written under the key is in `ava_core.config.data.SourceConfig`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from ava_core.config.data import DataConfig, LocatedSource
from ava_core.data.sources.source import Document, Source
from ava_core.errors import AvaError


def open_sources(config: DataConfig, data: Path | None) -> list[Source]:
    """The sources of a configuration, found but not yet read.

    Args:
        config: the section `data`.
        data: the folder given with --data, which corpora and relative paths are read from.

    Raises:
        AvaError: a file, a folder or the corpus is missing or empty.
        IntegrityError: the corpus is not the one that the code knows.
    """
    return open_each(config.sources, config.document_separator, data)


def open_each(sources: Sequence[LocatedSource], separator: str | None, data: Path | None) -> list[Any]:
    """As `open_sources`, from the entries themselves; those of records have `rows` too.

    Args:
        sources: the entries.
        separator: `data.document_separator`.
        data: the folder given with --data.
    """
    if data is not None and not data.is_dir():
        raise AvaError(f"--data {data}: no such folder: run `make data`, or give the folder that holds the corpus")
    return [
        import_module(f"ava_core.data.sources.{source.kind}").open_source(source, separator, data) for source in sources
    ]


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
    files = [file for source in sources for file in source.split_by_file()]
    sizes = [max(file.size, 1) for file in files]
    # A file belongs to the part in which its middle lies.
    middles = (end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True))
    return [file for file, middle in zip(files, middles, strict=True) if int(middle * count / sum(sizes)) == index - 1]


def digest_sources(config: DataConfig, data: Path | None) -> str:
    """SHA-256 over what all sources hold, wherever they lie; raises as `open_sources` does."""
    return digest_opened(open_sources(config, data))


def digest_opened(sources: list[Source]) -> str:
    """SHA-256 over what sources hold."""
    digests = [source.digest() for source in sources]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
