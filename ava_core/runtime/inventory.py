"""What there is on disk: the finished outputs below a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ava_core.errors import AvaError
from ava_core.runtime import manifest
from ava_core.runtime.work import timings_path

_SKIPPED = {".git", ".dvc", ".venv", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class Output:
    """A finished output.

    Attributes:
        folder: where it lies.
        manifest: what it holds and was made from.
        metrics: its metrics.json.
        timings: its OUTPUT.timings.json, empty where that is gone.
    """

    folder: Path
    manifest: manifest.Manifest
    metrics: dict[str, float]
    timings: dict[str, float]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["bytes"] for file in self.manifest.files.values())


@dataclass(frozen=True)
class Broken:
    """An output that fails its verification.

    Attributes:
        folder: where it lies.
        fault: one line that names the file.
    """

    folder: Path
    fault: str


def find_outputs(root: Path, depth: int = 5) -> Iterator[Output | Broken]:
    """Outputs at most `depth` folders below `root`, verified; not inside hidden folders or other outputs."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        if len(here.relative_to(root).parts) >= depth:
            folders.clear()
        if manifest.NAME in files:
            folders.clear()
            try:
                found = manifest.verify(here)
            except AvaError as error:
                yield Broken(here, str(error))
                continue
            yield Output(here, found, _figures(here / "metrics.json"), _figures(timings_path(here)))


def _figures(path: Path) -> dict[str, float]:
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return figures if isinstance(figures, dict) else {}
