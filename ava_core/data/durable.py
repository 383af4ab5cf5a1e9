"""Folders that are complete or absent, whenever a run is killed: finished ones stay, others are built again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

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
        partial = self.root / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        started = time.monotonic()
        build(partial)
        (partial / SECONDS).write_text(json.dumps(time.monotonic() - started))
        # On the disk before the name says that it is complete: a crash of the machine must not leave empty files.
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        partial.rename(folder)
        return folder

    def seconds(self, name: str) -> float:
        """Seconds that building `name` took, in whichever run that was."""
        return float(json.loads((self.root / name / SECONDS).read_text()))
