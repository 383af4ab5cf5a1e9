"""Durable checkpoints: whole or absent, checksummed, kept by number.

Layout: `FOLDER/step-00000050/` holds DeepSpeed's files below `engine/` and `checkpoint.json` with the SHA-256 of each.
DeepSpeed reads its files with pickle, so they are loaded only after their digests matched.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ava_core.errors import IntegrityError
from ava_core.runtime.digests import digest_file
from ava_core.training.engine import TrainingEngine

log = logging.getLogger(__name__)
RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: where it lies.
        step: optimiser steps done.
    """

    folder: Path
    step: int

    def verify(self) -> None:
        """Hold every file against its digest.

        Raises:
            IntegrityError: a file is missing or changed; the message names it.
        """
        record = self.folder / RECORD
        try:
            files = json.loads(record.read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{record}: can't be read: the checkpoint is not used") from error
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file() or digest_file(path) != digest:
                raise IntegrityError(f"{path}: its bytes are not those in {RECORD}: the checkpoint is not used")


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they lie; outlives a killed run.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def all(self) -> list[Checkpoint]:
        """Finished checkpoints, oldest first."""
        found = (Checkpoint(path, int(path.name.removeprefix("step-"))) for path in self.folder.glob("step-*[0-9]"))
        return sorted(found, key=lambda item: item.step)

    def save(self, engine: TrainingEngine, step: int) -> None:
        """Write a checkpoint beside the others, rename it when it is whole, then remove the oldest."""
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f"{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        state = {"ava_step": step, "ava_rng": _rng_state()}
        engine.deepspeed.save_checkpoint(str(partial), tag="engine", client_state=state, save_latest=False)
        files = {
            path.relative_to(partial).as_posix(): digest_file(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / RECORD).write_text(json.dumps({"step": step, "files": files}, indent=2, sort_keys=True))
        for name in (*files, RECORD):
            _flush(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(self.folder)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old.folder)

    def restore(self, engine: TrainingEngine) -> int:
        """Load the newest checkpoint whose bytes are right; the number of steps it stands for, 0 without one."""
        for leftover in self.folder.glob("*.partial"):
            shutil.rmtree(leftover)
        for checkpoint in reversed(self.all()):
            try:
                checkpoint.verify()
            except IntegrityError as error:
                log.warning("%s", error)
                continue
            _, state = engine.deepspeed.load_checkpoint(str(checkpoint.folder), tag="engine")
            _set_rng_state(state["ava_rng"])
            return int(state["ava_step"])
        return 0


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _flush(path: Path) -> None:
    """Bring a file or folder to the disk, so that a rename never stands for bytes that a power cut took."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
