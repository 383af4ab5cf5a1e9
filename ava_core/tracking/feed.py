"""Tailing a file of JSON lines that a training appends to, and cuts when it goes back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Feed:
    """Rows of a file, each given once, in the order of their `key`.

    A training that goes on from a checkpoint cuts its history there and appends the same rows again: those that were
    given before are passed over, since a tracking server can't take back what it has.

    Args:
        path: the file; it needn't exist yet.
        key: name of the integer that grows from row to row.
        after: rows up to here are passed over.
    """

    def __init__(self, path: Path, key: str, after: int = -1) -> None:
        self.path, self.key, self.last = path, key, after
        self._offset = 0
        self._before = b""

    def read(self) -> list[dict[str, Any]]:
        """The complete rows that were appended since the last call."""
        rows = []
        for line in self._lines():
            try:
                row = json.loads(line)
                position = int(row[self.key])
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill; the training writes it again
            if position > self.last:
                rows.append(row)
                self.last = position
        return rows

    def _lines(self) -> list[bytes]:
        """Whole lines since the last call; all of them if the file isn't the one that was read so far."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._before))
                if file.read(len(self._before)) != self._before:
                    self._offset, self._before = 0, b""
                    file.seek(0)
                content = file.read()
        except OSError:
            return []
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        self._offset += sum(map(len, lines))
        self._before = lines[-1] if lines else self._before
        return lines
