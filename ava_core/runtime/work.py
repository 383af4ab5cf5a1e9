"""The work folder: a step's durable memory, for unfinished state and finished outputs.

Layout: `WORK/STEP/KEY/` holds `lock`, `state/` (what a killed step goes on from), `output/` (finished, as it was
verified), `timings.json` and, of a step that keeps more than its output, `kept/`. An output is renamed into its entry
when it is whole, so a killed step leaves none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ava_core.errors import AvaError
from ava_core.files import replace_folder, write_json
from ava_core.runtime import manifest
from ava_core.runtime.atomic_copy import copy_atomically

log = logging.getLogger(__name__)
MAX_AGE_DAYS = 30.0
MAX_BYTES = 20 * 2**30
"""What pruning leaves: entries used within so many days, and of those the last used up to so many bytes."""
KEPT_HOURS = 24.0
"""Entries used more recently survive a step's pruning whatever their size: a killed run may have checkpoints there."""


@dataclass(frozen=True)
class Entry:
    """The folder of one step with one key."""

    folder: Path

    @property
    def state(self) -> Path:
        """Unfinished state; gone once the output is finished."""
        return self.folder / "state"

    @property
    def output(self) -> Path:
        """The finished output."""
        return self.folder / "output"

    @property
    def keeping(self) -> Path:
        """What of the state is to outlive the step; part of the state until then."""
        return self.state / "kept"

    @property
    def kept(self) -> Path:
        """What a finished step has kept beside its output, such as checkpoints."""
        return self.folder / "kept"

    @property
    def staging(self) -> Path:
        """Where an output is built before it is renamed to `output`: one name, for one process holds the entry."""
        return self.folder / "output.partial"

    @property
    def timings(self) -> Path:
        """What a clock or a memory meter gave on the run that made the output."""
        return self.folder / "timings.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the entry's lock (flock) exclusively; another process with the same key waits."""
        with self._locked_file("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def locked_part(self, name: str) -> Iterator[None]:
        """Share the entry's lock, and hold the part's: parts are computed side by side, and `locked` waits for them."""
        with self._locked_file("lock", fcntl.LOCK_SH), self._locked_file(f"{name}.lock", fcntl.LOCK_EX):
            yield

    def _locked_file(self, name: str, kind: int) -> IO[str]:
        path = self.folder / name
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                file = path.open("w")
            except FileNotFoundError:  # pruned since the line above
                continue
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is at the same work (%s): waiting for it", self.folder)
                fcntl.flock(file, kind)
            # Whoever held the lock may have removed the entry, and the lock with it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()

    def forget(self) -> None:
        """Throw away the state and the output of earlier runs."""
        for folder in (self.state, self.staging, self.output, self.kept):
            shutil.rmtree(folder, ignore_errors=True)

    def discard(self) -> bool:
        """Remove the entry with all that is in it, unless a process holds it; whether that was done."""
        try:
            with (self.folder / "lock").open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.folder, ignore_errors=True)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True

    def begin(self) -> None:
        """Prepare an empty staging folder; state of an earlier, killed run stays."""
        self.abandon()
        self.staging.mkdir(parents=True)
        self.state.mkdir(parents=True, exist_ok=True)

    def abandon(self) -> None:
        """Throw away what a failed run has built; its state stays."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def finish(self, contents: manifest.Manifest, timings: dict[str, float]) -> None:
        """Turn the staging folder into the finished output."""
        manifest.write(self.staging, contents)
        write_json(self.timings, timings)
        replace_folder(self.staging, self.output)
        self._end_state()

    def _end_state(self) -> None:
        """Keep what is to be kept of the state, and remove the rest."""
        if self.keeping.is_dir():
            replace_folder(self.keeping, self.kept)
        shutil.rmtree(self.state, ignore_errors=True)

    def finished(self) -> manifest.Manifest | None:
        """The verified manifest of the finished output; a damaged one is thrown away."""
        if not self.output.is_dir():
            return None
        try:
            contents = manifest.verify(self.output)
            json.loads(self.timings.read_text())
        except (AvaError, OSError, ValueError) as error:
            log.warning("%s: the kept copy is not used", error)
            shutil.rmtree(self.output)
            return None
        self._end_state()  # left by a kill just after the output was finished
        return contents

    def copy_to(self, output: Path) -> None:
        """Put a copy of the finished output at `output`, whole or not at all; what was there is replaced."""
        copy_atomically(self.output, output, beside={timings_path(output): self.timings})


def timings_path(output: Path) -> Path:
    """`OUTPUT.timings.json`, beside the output folder."""
    return output.with_name(f"{output.name}.timings.json")


class WorkStore:
    """All entries below one work folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, step: str, key: str) -> Entry:
        """The entry of a step with a key; half the key names the folder, 128 bits are enough."""
        return Entry(self.folder / step / key[:32])

    def entries(self) -> list[tuple[str, Entry, int, float]]:
        """Step, entry, bytes and time of last use of all entries, the longest unused first."""
        found = []
        for folder in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another process may be pruning
                used = (folder / "lock").stat().st_mtime
                found.append((folder.parent.name, Entry(folder), _size(folder), used))
        return sorted(found, key=lambda item: item[3])

    def prune(
        self, max_age_days: float = MAX_AGE_DAYS, max_bytes: int = MAX_BYTES, kept_hours: float = 0.0
    ) -> list[Entry]:
        """Remove entries unused for `max_age_days`, then the longest unused until `max_bytes` are kept.

        An entry that a running step holds is never removed, and for its size none that was used in `kept_hours`.
        Returns the removed ones.
        """
        entries = self.entries()
        total = sum(size for _, _, size, _ in entries)
        removed = []
        for _, entry, size, used in entries:
            age = time.time() - used
            if age < max_age_days * 86_400 and (total <= max_bytes or age < kept_hours * 3_600):
                continue
            if entry.discard():
                total -= size
                removed.append(entry)
        return removed


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size
