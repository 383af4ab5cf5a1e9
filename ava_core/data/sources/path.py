"""`path: FILE|FOLDER|GLOB`: files in one of the formats of `formats.py`.

The digest covers their names below the source and their bytes. A path that is named may be a link; below it links are
followed as `links.py` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path

from ava_core.config.data import LocatedSource
from ava_core.data.corpora import digest_files
from ava_core.data.sources.formats import FORMATS, Reading, Row, read_file, read_rows
from ava_core.data.sources.links import files_to_read, is_readable
from ava_core.data.sources.source import Document, Source
from ava_core.errors import AvaError


@dataclass(frozen=True)
class FileSource:
    """Files that were found below `root`."""

    name: str
    root: Path
    files: tuple[Path, ...]
    reading: Reading

    @property
    def license(self) -> str | None:
        return None

    @property
    def language(self) -> str | None:
        return None

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def documents(self) -> Iterator[Document]:
        for path in self.files:
            yield from read_file(path, path.relative_to(self.root).as_posix(), self.reading)

    def rows(self) -> Iterator[Row]:
        """The records of all files, of a format that has some."""
        for path in self.files:
            yield from read_rows(path, path.relative_to(self.root).as_posix(), self.reading.format)

    def split_by_file(self) -> list[Source]:
        return [replace(self, files=(path,)) for path in self.files]

    def digest(self) -> str:
        return digest_files(self.root, list(self.files))


def open_source(config: LocatedSource, separator: str | None, data: Path | None) -> FileSource:
    """The files that `config.path` names; relative paths count from `data`, else from the current folder.

    Raises:
        AvaError: there is no such file, none with text, or a link that isn't followed.
    """
    root, files = _find(data or Path(), config)
    reading = Reading(format=config.format, text_field=config.column, separator=separator)
    return FileSource(Path(str(config.path)).name, root, files, reading)


def _find(base: Path, config: LocatedSource) -> tuple[Path, tuple[Path, ...]]:
    """The folder that names count from, and the files, in the order of their names."""
    pattern = Path(str(config.path))
    path = base / pattern
    if path.is_file():
        return _not_empty(path.parent, [path], f"{path}: the file is empty: give a file with text")
    if path.is_dir():
        suffixes = FORMATS[config.format].suffixes
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
