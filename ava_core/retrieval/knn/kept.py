"""Rows that are made batch by batch over a long time; after a kill the next run goes on behind those that are safe."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.files import write_whole
from ava_core.retrieval.arrays import ArrayWriter, open_array

SAVE_EVERY_SECONDS = 10.0


class KeptRows:
    """A .npy file that grows, and beside it what of it is safe.

    Args:
        path: of the file, in the state of a step.
        dtype: of an element.
        row: shape of one row.

    Attributes:
        batches: that are in it.
        seconds: that making them took, over all runs.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...]) -> None:
        self.path, self._record = path, path.with_suffix(".json")
        kept = json.loads(self._record.read_text()) if self._record.is_file() else {}
        self.batches: int = kept.get("batches", 0)
        self.seconds: float = kept.get("seconds", 0.0)
        self._file = ArrayWriter(path, dtype, row, keep=kept.get("rows", 0))
        self._begun = self._saved = time.monotonic()

    @property
    def rows(self) -> int:
        return self._file.rows

    def append(self, values: np.ndarray) -> None:
        """Add the rows of one batch, (n, *row)."""
        self._file.append(values)
        self.batches += 1
        if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            self._save()

    def finish(self) -> np.ndarray:
        """All rows, as a memory map."""
        self._save()
        self._file.close()
        return open_array(self.path)

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds, self._begun, self._saved = self.seconds + now - self._begun, now, now
        self._file.flush()
        record = {"batches": self.batches, "rows": self.rows, "seconds": self.seconds}
        write_whole(self._record, json.dumps(record), durable=True)
