"""A file of JSON lines that a resumed training appends to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """Rows with a `step`, appended to a file in the training's state folder.

    After a rewind to a checkpoint, rows of a step that was written before replace those of that step and of all later
    ones.

    Args:
        path: the file; it needn't exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0

    def resume(self, step: int) -> None:
        """Drop rows after `step`, which come again, and a line that a kill cut off."""
        self._last = step
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def append(self, *rows: dict[str, Any]) -> None:
        """Add all rows of one step."""
        step = rows[0]["step"]
        if step <= self._last:
            self.resume(step - 1)
        self._last = step
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
