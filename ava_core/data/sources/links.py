"""Which symbolic links among the files of a source are followed.

A path that the user names is read, link or not. What is found below it is somebody else's choice: a link in a folder of
text could bring any file of the machine into the shards. So links are followed inside the source, and out of it only
into content-addressed stores, in which a file's name is the digest of its content, which is checked: DVC's cache
(`cache.type symlink`) and the Hugging Face Hub's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ava_core.errors import AvaError


def files_to_read(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Files below `folder` with one of the suffixes (all files without any), sorted, without hidden ones.

    Raises:
        AvaError: there is a link that isn't followed.
    """
    found = [path for path in _walk(folder) if not suffixes or path.suffix.lower() in suffixes]
    return sorted(path for path in found if is_readable(path, folder))


def is_readable(path: Path, root: Path) -> bool:
    """Whether `path`, which was found below `root`, is a file that may be read.

    Raises:
        AvaError: it is reached by a link that isn't followed.
    """
    for folder in path.parents[: len(path.relative_to(root).parts) - 1]:
        if folder.is_symlink():
            raise _to_folder(folder)
    try:
        real = Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise AvaError(f"{path}: is a link to nothing, or to itself: restore what it leads to, or remove it") from error
    if path.is_symlink() and not real.is_relative_to(root.resolve()) and not _is_content_addressed(real):
        raise AvaError(
            f"{path}: is a link to {real}, outside {root}: put a copy there, or name the file itself in data.sources"
        )
    return real.is_file()


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below `folder` but folders and hidden entries."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            elif Path(entry.path).is_dir():  # not the entry's, which raises for a link to itself
                raise _to_folder(Path(entry.path))
            else:
                yield Path(entry.path)


def _to_folder(path: Path) -> AvaError:
    return AvaError(f"{path}: is a link to a folder: name that folder in data.sources, as a source of its own")


def _is_content_addressed(path: Path) -> bool:
    """DVC: `ab/cdef...`, an MD5 without its first two digits. The Hub: a SHA-256, of small files git's SHA-1."""
    try:
        with path.open("rb") as file:
            if len(path.parent.name) == 2 and len(path.name) == 30:
                return path.parent.name + path.name == hashlib.file_digest(file, _md5).hexdigest()
            if len(path.name) == 64:
                return path.name == hashlib.file_digest(file, "sha256").hexdigest()
            if len(path.name) == 40:
                content = file.read()
                return path.name == _sha1(b"blob %d\0" % len(content) + content).hexdigest()
    except OSError:
        return False
    return False


def _md5(content: bytes = b""):
    return hashlib.md5(content, usedforsecurity=False)


def _sha1(content: bytes):
    return hashlib.sha1(content, usedforsecurity=False)
