"""The checkpoints of one run: save, restore, and what is left of them when it has finished."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, IntegrityError
from ava_core.files import discard
from ava_core.training.checkpoints.folder import (
    ENGINE,
    PARTIAL,
    Checkpoint,
    checkpoints_in,
    chosen,
    clear_leftovers,
    folder_name,
)
from ava_core.training.checkpoints.resuming import Restored, load, parameter_names, rank_state, verify_together
from ava_core.training.checkpoints.writing import BackgroundWriter, CopyingCheckpointEngine, Job

log = logging.getLogger(__name__)
UNIVERSAL = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
"""Lets DeepSpeed's `ds_to_universal` read our checkpoints."""


class CheckpointFolder:
    """The checkpoints of one run, written in the background. All ranks make the same calls.

    Args:
        folder: of the checkpoints, shared by all ranks; outlives a killed run.
        config: which are kept, and the ZeRO stage.
        ranks: this process among those that train.
        identity: what must be equal to go on from one of them: digests of the model section and of the tokenizer,
            the optimiser, the precision.
    """

    def __init__(self, folder: Path, config: TrainConfig, ranks: Ranks, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.ranks = ranks
        self.identity = identity
        self._writer = BackgroundWriter()
        self._failing = threading.Event()

    def all(self) -> list[Checkpoint]:
        """Finished checkpoints, oldest first; call `wait` first to count the one that is being written."""
        return checkpoints_in(self.folder)

    def save(
        self,
        engine: Any,
        step: int,
        parts: dict[str, dict],
        validation_loss: float | None = None,
        tokens_seen: int = 0,
        windows: dict[str, Any] | None = None,
    ) -> None:
        """Copy the state and let a thread write it; waits for the checkpoint before.

        Args:
            engine: the training engine.
            step: optimiser steps done.
            parts: states by name, of JSON types and tensors, the same on all ranks: the first rank's are written.
            validation_loss: nats per token, if it was measured at this step.
            tokens_seen: tokens trained on.
            windows: position in the order of the training split's windows, of JSON types.

        Raises:
            AvaError: the checkpoint before couldn't be written.
        """
        self.wait()
        final = self.folder / folder_name(step)
        partial = final.with_name(final.name + PARTIAL)
        if self.ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.ranks.barrier()
        copies = CopyingCheckpointEngine()
        deepspeed = engine.deepspeed
        deepspeed.checkpoint_engine = copies
        frozen = sorted(name for name, p in deepspeed.module.named_parameters() if not p.requires_grad)
        # Frozen weights are those that the training began from, which its own resume has again.
        settings = {"client_state": dict(UNIVERSAL), "exclude_frozen_parameters": bool(frozen), "save_latest": False}
        deepspeed.save_checkpoint(str(partial), tag=ENGINE, **settings)
        own = rank_state(engine, step, parts if self.ranks.is_first else {})
        copies.save(own, str(partial / f"rank-{self.ranks.rank:05d}.pt"))
        record = {
            "step": step,
            "ranks": self.ranks.size,
            "zero_stage": int(deepspeed.zero_optimization_stage()),
            "tokens_seen": tokens_seen,
            "windows": windows or {},
            "validation_loss": validation_loss,
            "identity": self.identity,
            "parameters": parameter_names(deepspeed),
            "groups": engine.groups,
            **({"frozen": frozen} if frozen else {}),
        }
        files = copies.take()
        job = Job(partial, final, files, record, self.ranks.rank, self.ranks.size, failing=self._failing)
        self._writer.start(job.write, self._prune)

    def restore(self, engine: Any, may_restore: Callable[[int], bool] | None = None) -> Restored | None:
        """Load the newest checkpoint that passes verification; None without one.

        Args:
            engine: the training engine, built by the same configuration.
            may_restore: whether the checkpoint of a step counts; None: all do.
        """
        self.wait()
        if self.ranks.is_first:
            clear_leftovers(self.folder)
        steps = self.ranks.broadcast_object([item.step for item in self.all()])
        for step in reversed(steps):
            checkpoint = Checkpoint(self.folder / folder_name(step), step)
            if may_restore is not None and not may_restore(step):
                continue
            try:
                verify_together(checkpoint, self.ranks)
            except IntegrityError as error:
                log.warning("%s", error)
                continue
            return load(engine, checkpoint, self.ranks)
        return None

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: after a rewind they belong to the abandoned branch."""
        self.wait()
        if self.ranks.is_first:
            for checkpoint in self.all():
                if checkpoint.step > step:
                    discard(checkpoint.folder)
        self.ranks.barrier()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete and flushed.

        Raises:
            AvaError: it couldn't be written, by this rank or another one.
        """
        met = self._writer.join()
        failed = self.ranks.any(met is not None)
        if met is not None:
            raise met
        if failed:
            raise AvaError(f"{self.folder}: another rank couldn't write its part of the checkpoint: see its message")

    def close(self) -> None:
        """As `wait`, but asks no other rank, so that one that fails can call it alone; its own fault goes first."""
        failing = sys.exception() is not None
        if failing:
            self._failing.set()
        met = self._writer.join()
        if met is not None and failing:
            log.error("%s", met)
        elif met is not None:
            raise met

    def keep(self, folder: Path) -> None:
        """Copy the checkpoints that the policy keeps after a finished training into `folder`; the originals stay.

        Files are linked, not copied, where the file system can. Does nothing if the policy keeps nothing.
        """
        self.wait()
        if not self.ranks.is_first:
            return
        shutil.rmtree(folder, ignore_errors=True)
        for checkpoint in chosen(self.all(), self.config, finished=True):
            shutil.copytree(checkpoint.folder, folder / checkpoint.folder.name, copy_function=_link)

    def _prune(self) -> None:
        if self.ranks.is_first:
            everything = self.all()
            for checkpoint in set(everything) - set(chosen(everything, self.config)):
                discard(checkpoint.folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
