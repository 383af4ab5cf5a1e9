"""JSON lines: `metrics.jsonl` with a line per step and per sample of the machine, `run.json` with what the run is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.files import write_json
from ava_core.tracking.sinks.sink import Assignment


class JsonLinesSink:
    """See `Sink`. A training that goes on writes its file anew, from the history: what it holds is then one run."""

    last_step = last_time = 0

    def __init__(self, given: Assignment) -> None:
        folder = Path(given.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._given, self._note = given, folder / "run.json"
        self._path = folder / "metrics.jsonl"
        self.address = str(self._path)
        self._path.write_text("", encoding="utf-8")
        self._describe("RUNNING")

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[int]:
        """As they are in the history."""
        for row in rows:
            self._append(row)
            yield int(row["step"])

    def log_system(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """With `system/` before the names of their figures."""
        for row in rows:
            kept = {name: row[name] for name in ("step", "time")}
            self._append({**kept, **{f"system/{name}": value for name, value in row.items() if name not in kept}})

    def attach(self, name: str, folder: str) -> None:
        """They lie in a folder already."""

    def end(self, status: str) -> None:
        """Say in `run.json` how it ended."""
        self._describe(status)

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _describe(self, status: str) -> None:
        given = self._given
        known = {"name": given.name, "experiment": given.experiment, "status": status, "notes": given.notes}
        write_json(self._note, {**known, "tags": dict(given.tags), "parameters": dict(given.parameters)})


def open_sink(given: Assignment) -> JsonLinesSink:
    """A file that begins anew."""
    return JsonLinesSink(given)
