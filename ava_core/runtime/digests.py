"""SHA-256 of files and of values."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ava_core.errors import IntegrityError

SETTLED_NS = 2 * 10**9
"""Nanoseconds since a file's last change (ctime) from which its times tell whether it changes again: file systems count
in coarser ticks than a writer's."""
_known: dict[tuple[int, ...], str] = {}


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_unchanged(path: Path) -> str:
    """As `digest_file`; a file that this process has digested isn't read again until its inode or its times change.

    So a folder can be verified before it is read and after it, and by each of several readers, for one reading of its
    bytes. A file's owner can't set its ctime, unlike its mtime.
    """
    before = _state(path)
    digest = _known.get(before)
    if digest is None:
        digest = digest_file(path)
        if _state(path) == before and time.time_ns() - before[-1] > SETTLED_NS:
            _known[before] = digest
    return digest


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def files_below(folder: Path) -> list[Path]:
    """All files below `folder`, sorted. A link to a file counts as the file; what it holds is for digests to tell.

    Raises:
        IntegrityError: there is a link to a folder, whose content would go unseen here and not everywhere; a link to
            nothing; a pipe, a socket or a device.
    """
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path)
            elif path.is_file():  # not the entry's, which raises for a link to itself
                yield path
            else:
                what = "a link to a folder or to nothing" if entry.is_symlink() else "neither a file nor a folder"
                raise IntegrityError(f"{path}: is {what}: remove it, or put a copy in its place")


def digest_value(value: Any) -> str:
    """SHA-256 of a value of JSON types; the order of keys doesn't matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tree(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder` (or of one file); raises as `files_below`."""
    files = [folder] if folder.is_file() else files_below(folder)
    return digest_value([[path.relative_to(folder).as_posix(), digest_file(path)] for path in files])
