"""Atomic writes: files and folders are written beside their path and renamed. And JSON that others wrote.

What is being written lies beside its path under the name `.NAME.WRITER.partial` until it is renamed, and what it
replaces is `.NAME.WRITER.replaced` for that moment. WRITER is the id of the writing thread (TID; of a
process's first thread it is the PID): no two writers share a name, and what a killed one has left is told from what is
still being written. The next writer of the same path removes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ENDING = re.compile(r"\.(\d+)\.(partial|replaced)")


def write_whole(
    path: Path, content: str | bytes, *, durable: bool = False, mode: int = 0o666, beside: Path | None = None
) -> None:
    """Write a file, or replace it, so that a kill at any moment leaves the former one or the new one.

    A link at `path` is replaced; what it leads to stays as it is.

    Args:
        path: of the file; its folder exists.
        content: text is written as UTF-8.
        durable: fsync the bytes before the rename, so that a power cut leaves no empty file.
        mode: permissions of the file, less the umask's.
        beside: the path beside which the file is written, on the same file system; by default `path`. For a folder in
            which a file that a kill left behind would be one too many.

    Raises:
        OSError: no space, no permission, no such folder; it names `path`, which is what it was before.
    """
    beside = beside or path
    partial = sibling(beside, "partial")
    try:
        clear_leftovers(beside)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(descriptor)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a value as JSON in the form that all outputs have: indented by 2, keys in order; whole as `write_whole`."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n", durable=durable)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write an object per line, in the rows' own order of keys; whole as `write_whole`."""
    write_whole(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


@contextmanager
def whole_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """An empty folder to fill. At the end of the block it replaces what is at `path`; after an error it is removed.

    Args:
        path: of the folder; the folders above it are made.
        durable: fsync all files and folders in it before the rename, and the folder above after it.
    """
    with unfinished_folder(path) as partial:
        yield partial
        if durable:
            for item in (*partial.rglob("*"), partial):
                if item.is_file() or item.is_dir():
                    flush(item)
        replace_folder(partial, path, durable=durable)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, for what `path` is made from; removed at the end of the block."""
    clear_leftovers(path)
    partial = sibling(path, "partial")
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        remove(partial)


def replace_folder(folder: Path, path: Path, *, durable: bool = False) -> None:
    """Rename `folder` to `path`. Unlike `os.replace`, it also replaces a folder with files in it.

    Args:
        folder: what is at `path` then.
        path: in the same file system.
        durable: fsync the folder above, with the new name, before what is replaced is removed.

    Raises:
        OSError: it can't be renamed; what was at `path` is there again.
    """
    clear_leftovers(path, "replaced")  # `folder` may lie in what is partial
    replaced = sibling(path, "replaced")
    if os.path.lexists(path):
        path.rename(replaced)
    try:
        folder.rename(path)
    except OSError:
        if os.path.lexists(replaced):
            replaced.rename(path)
        raise
    if durable:
        flush(path.parent)
    remove(replaced)


def discard(folder: Path) -> None:
    """Rename a folder away and remove it, so that a kill in the middle leaves nothing under the name others know."""
    replaced = sibling(folder, "replaced")
    remove(replaced)
    folder.rename(replaced)
    remove(replaced)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """fsync a file or folder, so that a rename never stands for bytes that a power cut took."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sibling(path: Path, purpose: str) -> Path:
    """Where this thread keeps, beside `path`, what isn't there yet ("partial") or any more ("replaced")."""
    return path.with_name(f".{path.name}.{threading.get_native_id()}.{purpose}")


def clear_leftovers(path: Path, *purposes: str) -> None:
    """Remove what killed writers of `path` left beside it, all or for these purposes.

    That includes what has this thread's id: in a container, with PIDs of its own, every run has the same ids.
    """
    try:
        present = list(path.parent.iterdir())
    except OSError:  # there is no folder yet, or we may only write into it
        return
    start = f".{path.name}."
    for leftover in present:
        ending = _ENDING.fullmatch(leftover.name, len(start) - 1) if leftover.name.startswith(start) else None
        if ending and (not purposes or ending[2] in purposes) and not _is_another_writer(int(ending[1])):
            remove(leftover)


def _is_another_writer(number: int) -> bool:
    return number != threading.get_native_id() and Path(f"/proc/{number}").exists()


def parse_json(text: str | bytes) -> Any:
    """What a JSON text stands for; like `json.loads`, but every text that can't be read ends in the same error.

    Raises:
        ValueError: no JSON, no UTF-8, a number of thousands of digits, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
