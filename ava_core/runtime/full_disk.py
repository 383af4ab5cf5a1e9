"""A full disk, recognised whatever library it hit, and told in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ava_core.errors import AvaError

_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = ("No space left on device", "Disk quota exceeded", "os error 28", "disk is full")
_FAILED_WRITES = ("writ", "iostream error", "inline_container")  # the last two are PyTorch's
_NEARLY_FULL = 64 * 2**10


@contextmanager
def full_disk_explained(*folders: Path) -> Iterator[None]:
    """Turn an error that comes from a full disk into an AvaError that names the folder.

    Libraries report it as OSError, as an error of their own with the system's text inside, or (PyTorch) as a failed
    write without a reason; for the last of these the free space decides.

    Args:
        folders: where the work writes.
    """
    try:
        yield
    except AvaError:
        raise
    except Exception as error:
        if not _is_full_disk(error, folders):
            raise
        where = getattr(error, "filename", None) or next(filter(_nearly_full, folders), folders[0])
        raise AvaError(describe(where)) from error


def describe(where: Path | str) -> str:
    """The line for a full disk."""
    return (
        f"{where}: no space left on the disk: free some, or give --output and --work on another disk;"
        " finished work is kept"
    )


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in _ERRNOS or any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_full_disk(error: BaseException, folders: tuple[Path, ...]) -> bool:
    failed_write = isinstance(error, OSError | RuntimeError) and any(word in str(error) for word in _FAILED_WRITES)
    return is_full_disk(error) or (failed_write and any(map(_nearly_full, folders)))


def _nearly_full(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free < _NEARLY_FULL
