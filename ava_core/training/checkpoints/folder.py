"""A checkpoint on disk: its layout, its record, its verification, and the retention policy.

Layout: `FOLDER/step-00000050/` holds DeepSpeed's files below `engine/`, `rank-00000.pt` with what each process adds,
and `checkpoint.json` with the SHA-256 of each file. While it is written it is called `step-00000050.partial`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ava_core.config.train import TrainConfig
from ava_core.errors import IntegrityError
from ava_core.files import flush, replace_folder, write_json
from ava_core.runtime.digests import digest_file, digest_value

RECORD = "checkpoint.json"
ENGINE = "engine"
PARTIAL = ".partial"
"""No writer's number in it, as other unfinished folders have: all processes of a training write into the same one."""
FIELDS: dict[str, type] = {
    "step": int,
    "ranks": int,
    "zero_stage": int,
    "tokens_seen": int,
    "windows": dict,
    "identity": dict,
    "files": dict,
}
"""What every record has, beside `parameters` and `validation_loss`, which may be null, the digest of the
names in the optimiser's `groups`, and the names of `frozen` parameters, if there are any: it doesn't hold them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, not verified yet.

    Attributes:
        folder: where it lies.
        step: optimiser steps done.
    """

    folder: Path
    step: int

    @cached_property
    def record(self) -> dict[str, Any]:
        """step, ranks, zero_stage, tokens_seen, windows (position in their order), validation_loss, identity,
        parameters and files (SHA-256 by name).

        Raises:
            IntegrityError: it can't be read, or isn't the one that was written.
        """
        path = self.folder / RECORD
        try:
            record = json.loads(path.read_bytes())
            digest = record.pop("digest")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path}: can't be read: the checkpoint is not used") from error
        if digest != digest_value(record):
            raise IntegrityError(f"{path}: was changed after it was written: the checkpoint is not used")
        for name, kind in FIELDS.items():
            if type(record.get(name)) is not kind:
                raise IntegrityError(
                    f"{path}: {name}: is missing or no {kind.__name__}: it is of another version of Ava, or none of"
                    " its checkpoints"
                )
        return record

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Compare the files with their SHA-256: all, or every `shares`-th beginning with `share`.

        Raises:
            IntegrityError: a file is missing, added or changed; the message names it.
        """
        present = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir()}
        for name in sorted(present - self.record["files"].keys() - {RECORD}):
            raise IntegrityError(f"{self.folder / name}: is not in {RECORD}: the checkpoint is not used")
        for name, digest in sorted(self.record["files"].items())[share::shares]:
            path = self.folder / name
            if not path.is_file():
                raise IntegrityError(f"{path}: is missing: the checkpoint is not used")
            if digest_file(path) != digest:
                raise IntegrityError(f"{path}: its bytes are not those in {RECORD}: the checkpoint is not used")

    @property
    def validation_loss(self) -> float | None:
        """Nats per token, if it was measured at this step."""
        try:
            return self.record["validation_loss"]
        except IntegrityError:
            return None


def folder_name(step: int) -> str:
    """`step-00000050`."""
    return f"step-{step:08d}"


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Finished checkpoints, oldest first."""
    found = (Checkpoint(path, int(path.name.removeprefix("step-"))) for path in folder.glob("step-*[0-9]"))
    return sorted(found, key=lambda item: item.step)


def chosen(checkpoints: Iterable[Checkpoint], config: TrainConfig, *, finished: bool = False) -> list[Checkpoint]:
    """Checkpoints that the retention policy keeps, oldest first.

    Kept are the last `keep_checkpoints`, with `keep_best_checkpoint` the one with the lowest validation loss (the
    earlier of equals), and those at multiples of `keep_checkpoint_every`; of a finished training with
    `keep_last_checkpoint` the last one.

    Args:
        finished: the training has ended: the last ones aren't needed any more.
    """
    ordered = sorted(checkpoints, key=lambda item: item.step)
    steps = set() if finished else {item.step for item in ordered[-config.keep_checkpoints :]}
    if config.keep_last_checkpoint:
        steps |= {item.step for item in ordered[-1:]}
    if config.keep_checkpoint_every is not None:
        steps |= {item.step for item in ordered if item.step and not item.step % config.keep_checkpoint_every}
    if config.keep_best_checkpoint:
        losses = [(item.validation_loss, item.step) for item in ordered if item.validation_loss is not None]
        steps |= {step for _, step in sorted(losses)[:1]}
    return [item for item in ordered if item.step in steps]


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write checkpoint.json, the last file of a checkpoint, and flush it (fsync).

    A validation loss that is not finite is recorded as null.
    """
    loss = record.get("validation_loss")
    record = {**record, "validation_loss": loss if loss is not None and math.isfinite(loss) else None}
    write_json(folder / RECORD, {**record, "digest": digest_value(record)}, durable=True)


def publish(partial: Path, final: Path) -> None:
    """Rename a complete checkpoint to its final name; replaces one of the same step from before a rewind."""
    for folder in sorted(path for path in partial.rglob("*") if path.is_dir()):
        flush(folder)
    flush(partial)
    replace_folder(partial, final, durable=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing or removing; no other run is at work in the folder."""
    for pattern in (f"step-*{PARTIAL}", ".step-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)
