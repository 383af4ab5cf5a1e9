"""Disks: room for outputs and work, and whether files can be written there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ava_core.config.hardware import GIB
from ava_core.diagnosis.finding import Finding, fail, ok, warn

LITTLE, TOO_LITTLE = 5.0, 0.5
"""GiB: a run of the default pipeline leaves 0.2, checkpoints of larger models many."""


def check_disk(what: str, folder: Path, free_gib: float | None = None) -> Iterator[Finding]:
    """Free space of a folder's disk; a folder that isn't there yet is looked at where it would be made.

    Args:
        what: name of the folder in the finding.
        folder: the folder.
        free_gib: what is free, in GiB; None: as it is.
    """
    try:
        there = nearest(folder)
        status = os.statvfs(there)
    except OSError as error:
        yield fail(what, f"{folder}: {error.strerror}", "go to a folder that is there, or set AVA_WORK to one")
        return
    name = str(folder) if there == folder else f"{folder}, to be made in {there}"
    if reason := _not_writable(there):
        yield fail(what, f"{name}: {reason}", "give another in AVA_WORK or --work, or change its permissions")
        return
    free = status.f_bavail * status.f_frsize / GIB if free_gib is None else free_gib
    value = f"{name}: {free:.1f} GiB are free"
    prune = "free some: `ava show --work --prune` removes old work"
    if free < TOO_LITTLE:
        yield fail(what, value, prune)
    elif status.f_files and not status.f_favail:
        yield fail(what, f"{name}: no inode is free", "remove some files: each takes one")
    elif free < LITTLE:
        yield warn(what, value, prune)
    else:
        yield ok(what, value)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there.

    Raises:
        OSError: something on the way is no folder.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if os.path.lexists(there) and not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
    return there


def _not_writable(folder: Path) -> str:
    """Why no file can be made in a folder; empty if one can. It is tried: permissions alone know nothing of mounts."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__
