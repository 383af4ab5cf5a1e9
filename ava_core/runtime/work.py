"""The work folder: a step's durable memory, for unfinished state and finished outputs.

Layout: `WORK/STEP/KEY/` holds `lock`, `state/` (what a killed step goes on from), `output/` (finished, as it was
verified) and `timings.json`. An output is renamed into its entry when it is whole, so a killed step leaves none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ava_core.errors import IntegrityError
from ava_core.runtime import manifest

log = logging.getLogger(__name__)
MAX_AGE_DAYS = 30.0
MAX_BYTES = 20 * 2**30


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
    def staging(self) -> Path:
        """Where an output is built before it is renamed to `output`."""
        return self.folder / "output.partial"

    @property
    def timings(self) -> Path:
        """What a clock or a memory meter gave on the run that made the output."""
        return self.folder / "timings.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the entry for this process; another process with the same key waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is at the same work (%s): waiting for it", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def forget(self) -> None:
        """Throw away the state and the output of earlier runs."""
        for folder in (self.state, self.staging, self.output):
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self) -> None:
        """Prepare an empty staging folder; state of an earlier, killed run stays."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        self.state.mkdir(parents=True, exist_ok=True)

    def finish(self, contents: manifest.Manifest, timings: dict[str, float]) -> None:
        """Turn the staging folder into the finished output."""
        manifest.write(self.staging, contents)
        self.timings.write_text(json.dumps(timings, indent=2, sort_keys=True) + "\n")
        shutil.rmtree(self.output, ignore_errors=True)
        self.staging.rename(self.output)
        shutil.rmtree(self.state, ignore_errors=True)

    def finished(self) -> manifest.Manifest | None:
        """The verified manifest of the finished output; a damaged one is thrown away."""
        if not self.output.is_dir():
            return None
        try:
            return manifest.verify(self.output)
        except IntegrityError as error:
            log.warning("%s: the kept copy is not used", error)
            shutil.rmtree(self.output)
            return None

    def place(self, output: Path) -> None:
        """Copy the finished output to `output`, whole or not at all; what was there is replaced.

        Copies rather than links, so that a later edit of `output` never reaches the kept bytes; the kernel shares
        the blocks where the file system can.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
        replaced = output.with_name(f".{output.name}.{os.getpid()}.replaced")
        try:
            shutil.copytree(self.output, partial)
            shutil.copyfile(self.timings, timings_path(output))
            if output.exists():
                output.rename(replaced)
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


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
            if (folder / "lock").exists():
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append((folder.parent.name, Entry(folder), size, (folder / "lock").stat().st_mtime))
        return sorted(found, key=lambda item: item[3])

    def prune(self, max_age_days: float = MAX_AGE_DAYS, max_bytes: int = MAX_BYTES) -> list[Entry]:
        """Remove entries unused for `max_age_days`, then the longest unused until `max_bytes` are kept.

        An entry that a running step holds is never removed.
        """
        entries = self.entries()
        total = sum(size for _, _, size, _ in entries)
        removed = []
        for _, entry, size, used in entries:
            if time.time() - used < max_age_days * 86_400 and total <= max_bytes:
                continue
            with (entry.folder / "lock").open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(entry.folder, ignore_errors=True)
            total -= size
            removed.append(entry)
        return removed
