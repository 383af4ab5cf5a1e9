"""Copying a finished folder to where it was asked for: whole or not at all, also on a full disk or under a kill."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ava_core.files import clear_leftovers, remove, sibling, whole_folder

_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def copy_atomically(source: Path, target: Path, beside: Mapping[Path, Path]) -> None:
    """Copy `source` to `target` by way of a hidden sibling that is renamed at the end; what was there is replaced.

    Copies rather than links, so that a later edit of `target` never reaches the kept bytes; the kernel shares the
    blocks (reflinks) where the file system can.

    Args:
        source: a finished folder.
        target: where a copy shall be.
        beside: source by path of files that go next to it; they appear just before the folder.

    Raises:
        OSError: no space, no permission; `target` is then what it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = {path: sibling(path, "partial") for path in beside}
    try:
        with whole_folder(target) as partial:
            _copy_tree(source, partial)
            for path, kept in beside.items():
                clear_leftovers(path)
                _copy_file(kept, staged[path])
            for path, copy in staged.items():
                copy.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        for path in staged.values():
            remove(path)


def _copy_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            _copy_file(path, copy)


def _copy_file(source: Path, target: Path) -> None:
    """Copy by copy_file_range, which makes reflinks on file systems that can; shutil.copyfile never does."""
    with source.open("rb") as reader, target.open("xb") as writer:
        remaining = os.fstat(reader.fileno()).st_size
        try:
            while remaining > 0 and (copied := os.copy_file_range(reader.fileno(), writer.fileno(), remaining)):
                remaining -= copied
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        if remaining > 0:
            reader.seek(0)
            writer.seek(0)
            shutil.copyfileobj(reader, writer, 2**20)
