"""Folders that are complete or absent, whenever a run is killed: finished ones stay, others are built again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from ava_core.files import whole_folder

SECONDS = "seconds.json"


class DurableFolders:
    """Named folders below `root`, each built once and renamed into place when it is complete.

    Args:
        root: survives a killed run; only runs with the same inputs and configuration share it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder `name`; if there is none yet, `build` fills NAME.partial, which is renamed when it is complete."""
        folder = self.root / name
        if folder.is_dir():
            return folder
        started = time.monotonic()
        with whole_folder(folder, durable=True) as partial:
            build(partial)
            (partial / SECONDS).write_text(json.dumps(time.monotonic() - started))
        return folder

    def seconds(self, name: str) -> float:
        """Seconds that building `name` took, in whichever run that was."""
        return float(json.loads((self.root / name / SECONDS).read_text()))
