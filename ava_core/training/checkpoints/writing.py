"""Writing in the background: the state is copied into host memory, and a thread writes and flushes it.

DeepSpeed hands every file of a checkpoint to its engine's `checkpoint_engine` (deepspeed.runtime.checkpoint_engine);
ours copies what it is given and writes nothing. The thread serialises, hashes and flushes. Measured (8 tensors,
128 MB, one core): torch's zip format without its checksums takes 0.17 s and leaves the interpreter free, the older
format 0.27 s, the zip format with them 1.0 s; the SHA-256 that we need anyway takes their place.
"""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ava_core.errors import AvaError, first_line
from ava_core.files import flush, write_json
from ava_core.runtime.digests import digest_file
from ava_core.runtime.full_disk import full_disk_explained
from ava_core.training.checkpoints.folder import publish, write_record
from ava_core.training.checkpoints.reading import read_tensors

RECORDS = "records"
"""Folder inside a partial checkpoint in which each rank lists the files that it has written."""
WAIT_SECONDS = 1_800.0
"""How long the first rank's writer waits for the other ranks' files."""
GRACE_SECONDS = 10.0
"""How long it still waits when the training has failed: the others' files are nearly there, or never come."""
_POLL_SECONDS = 0.05


class CopyingCheckpointEngine:
    """DeepSpeed's files, copied and kept until `take`; reads them by `read_tensors`, which runs nothing.

    Has the methods of deepspeed.runtime.checkpoint_engine.CheckpointEngine, which would have to be imported too early.
    """

    name = "CopyingCheckpointEngine"

    def __init__(self) -> None:
        self._files: list[tuple[Path, Any]] = []

    def create(self, info: Any) -> None:
        """Begin a checkpoint."""
        self._files = []

    def save(self, state_dict: Any, path: str) -> None:
        """Copy what `path` is to hold."""
        self._files.append((Path(path), copied(state_dict)))

    def load(self, path: str, map_location: Any = None) -> Any:
        """The tensors and plain values in a file.

        Raises:
            IntegrityError: it holds something that could run code.
        """
        return read_tensors(path, map_location, mmap=False)

    def commit(self, info: Any) -> bool:
        """All files have been given."""
        return True

    def take(self) -> list[tuple[Path, Any]]:
        """The files of the checkpoint, no longer kept here."""
        files, self._files = self._files, []
        return files

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Whether a rank writes what all ranks have."""
        return dp_rank == 0

    def is_decoupled(self) -> bool:
        """False: DeepSpeed needn't call back when a step ends."""
        return False

    def preserves_storage_sharing(self) -> bool:
        """False: views are copied without what they are views of."""
        return False

    def cleanup(self) -> None:
        """Nothing to end."""


def copied(state: Any, _seen: dict[tuple, Tensor] | None = None) -> Any:
    """A copy of nested dictionaries, lists and tuples that later steps can't change, with tensors in host memory.

    Tensors that are the same stay the same; views are copied without what they are views of. Members of an enumeration
    are copied as their values: Python 3.11.0 to 3.11.3 pickle them by `getattr`, which no careful reader calls.
    """
    seen = {} if _seen is None else _seen
    if isinstance(state, Enum):
        return state.value
    if isinstance(state, Tensor):
        state = state.detach()
        key = (state.data_ptr(), state.shape, state.stride(), state.dtype, state.device)
        if not state.numel() or key not in seen:
            seen[key] = state.clone() if state.device.type == "cpu" else state.cpu()
        return seen[key]
    if isinstance(state, dict):
        result = copy.copy(state)  # whatever kind of dictionary it is
        result.update((key, copied(value, seen)) for key, value in state.items())
        return result
    if type(state) in (list, tuple):
        return type(state)(copied(value, seen) for value in state)
    if state is None or isinstance(state, bool | int | float | str | bytes | torch.Size | torch.dtype | torch.device):
        return state
    return copy.deepcopy(state)


@dataclass
class Job:
    """What is to be written of one checkpoint.

    Attributes:
        partial: the folder that is written into.
        final: its name when it is whole.
        files: this rank's files: path and copied state.
        record: what checkpoint.json holds beside the digests.
        rank, ranks: this process and how many there are.
        wait_seconds: how long the first rank waits for the others.
        failing: set when the training has failed, so that it waits no longer than `GRACE_SECONDS`.
    """

    partial: Path
    final: Path
    files: list[tuple[Path, Any]]
    record: dict[str, Any]
    rank: int = 0
    ranks: int = 1
    wait_seconds: float = field(default=WAIT_SECONDS, kw_only=True)
    failing: threading.Event = field(default_factory=threading.Event, kw_only=True)

    def write(self) -> None:
        """Write this rank's files; the first rank then waits for the others' and makes the checkpoint whole.

        Raises:
            AvaError: the disk is full, a file can't be written, or another rank's are missing.
        """
        records = self.partial / RECORDS
        name = f"rank-{self.rank:05d}.json"
        try:
            with _in_one_line(self.final), full_disk_explained(self.partial.parent):
                records.mkdir(parents=True, exist_ok=True)
                digests = self._write_files()
                write_json(records / name, {"files": digests}, durable=True)
        except AvaError as error:
            _tell_first_rank(records / name, error)
            raise
        if self.rank == 0:
            with _in_one_line(self.final), full_disk_explained(self.partial.parent):
                self._complete(records)

    def _write_files(self) -> dict[str, str]:
        digests = {}
        while self.files:
            path, state = self.files.pop(0)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _without_checksums():
                torch.save(state, path)
            del state  # makes room before the next one
            flush(path)
            digests[path.relative_to(self.partial).as_posix()] = digest_file(path)
        return digests

    def _complete(self, records: Path) -> None:
        digests: dict[str, str] = {}
        deadline = time.monotonic() + self.wait_seconds
        for rank in range(self.ranks):
            digests |= self._read(records / f"rank-{rank:05d}.json", rank, deadline)
        shutil.rmtree(records)
        for path in sorted(path for path in self.partial.rglob("*") if path.is_file()):
            name = path.relative_to(self.partial).as_posix()
            if name not in digests:  # DeepSpeed's scripts
                flush(path)
                digests[name] = digest_file(path)
        write_record(self.partial, {**self.record, "files": digests})
        publish(self.partial, self.final)

    def _read(self, path: Path, rank: int, deadline: float) -> dict[str, str]:
        """Digests of another rank's files, when it has written them."""
        while not path.is_file():
            if self.failing.is_set():
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                self.failing.clear()
            if time.monotonic() > deadline:
                raise AvaError(f"{self.final}: rank {rank} has not written its part: the checkpoint is given up")
            time.sleep(_POLL_SECONDS)
            list(path.parent.iterdir())  # network file systems look again
        record = json.loads(path.read_text())
        if "error" in record:
            raise AvaError(f"{self.final}: rank {rank} couldn't write its part: {record['error']}")
        return record["files"]


class BackgroundWriter:
    """At most one writing thread; its exception is raised by the next `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._met: BaseException | None = None

    def start(self, *steps: Any) -> None:
        """Call `steps`, one after the other, in a thread."""
        assert self._thread is None, "wait for the one before"
        self._thread = threading.Thread(target=self._run, args=steps, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def join(self) -> BaseException | None:
        """Wait for the thread; what it met, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        met, self._met = self._met, None
        return met

    def _run(self, *steps: Any) -> None:
        try:
            for step in steps:
                step()
        except BaseException as error:  # handed over to the main thread
            self._met = error


def _tell_first_rank(path: Path, error: AvaError) -> None:
    """So that it needn't wait; a disk that is too full even for this makes it wait."""
    try:
        write_json(path, {"error": str(error)}, durable=True)
    except OSError:
        return


@contextmanager
def _in_one_line(final: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise AvaError(f"{final}: the checkpoint can't be written: {reason}") from error


@contextmanager
def _without_checksums() -> Iterator[None]:
    """torch's CRC-32 of each record: five sixths of the time that writing takes, and SHA-256 says more."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
