"""Arrays and rows of bytes that grow on disk and are read through memory maps.

Everything is written with `write`, never through a map: on a full disk a write fails with an error, a map with a signal
that ends the process.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy

from ava_core.errors import IntegrityError

_BUFFERED_ROWS = 8192


class ArrayWriter:
    """A .npy file whose number of rows is known at its end.

    Args:
        path: of the file, which is made or emptied.
        dtype: of an element.
        row: shape of one row; () for an array of numbers.
        keep: rows of an earlier writer's file, of the same type, that stay; what comes after them is cut off.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = (), *, keep: int = 0) -> None:
        self.dtype, self.row, self.rows = np.dtype(dtype), row, keep
        self._file = path.open("r+b" if keep else "wb")
        self._write_header()
        self._file.truncate(self._file.seek(keep * self.dtype.itemsize * math.prod(row), os.SEEK_CUR))

    def append(self, values: np.ndarray) -> None:
        """Add rows, (n, *row), converted to the array's type."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.rows += len(values)

    def flush(self) -> None:
        """Make sure that the rows so far survive a power cut; the header still says how many there were at first."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write the number of rows into the header."""
        if not self._file.closed:
            with self._file:
                self._file.seek(0)
                self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow, so that it has one length for all numbers of rows.
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.rows, *self.row)}
        npy.write_array_header_1_0(self._file, header)


class RowsWriter:
    """Rows of bytes one after another in `path`, and where each begins in `path` with the ending `.offsets.npy`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._offsets = ArrayWriter(offsets_path(path), np.uint64)
        self._pending = [0]
        self._end = 0

    def extend(self, rows: Iterable[bytes]) -> None:
        """Add rows."""
        for row in rows:
            self._file.write(row)
            self._end += len(row)
            self._pending.append(self._end)
        if len(self._pending) >= _BUFFERED_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()
        self._offsets.close()

    def _flush(self) -> None:
        self._offsets.append(np.array(self._pending, np.uint64))
        self._pending.clear()


class Rows:
    """What `RowsWriter` wrote, read by number without the rest in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = open_array(offsets_path(path))
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._bytes: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if self._offsets.ndim != 1 or not len(self._offsets) or int(self._offsets[-1]) != size:
            raise IntegrityError(f"{path} has {size:,} bytes, not those that its offsets name: build the index anew")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(f"{self._path} has rows 0 to {len(self) - 1:,}, not {number:,}")
        return self._bytes[int(self._offsets[number]) : int(self._offsets[number + 1])]


def offsets_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.offsets.npy")


def open_array(path: Path) -> np.ndarray:
    """A .npy file as a memory map.

    Raises:
        IntegrityError: there is none, or it is no such array.
    """
    try:
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, _, dtype = npy.read_array_header_1_0(file)
            if 0 in shape:  # which can't be mapped
                return np.zeros(shape, dtype)
        # NumPy's own class of maps makes every slice an object of its kind, which costs a microsecond each.
        return npy.open_memmap(path, mode="r").view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"{path} can't be read as an array ({error}): build the index anew") from error


def write_array(path: Path, values: np.ndarray) -> None:
    """A .npy file in one go."""
    with ArrayWriter(path, values.dtype, values.shape[1:]) as file:
        file.append(values)
