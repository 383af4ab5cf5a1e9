"""Out of memory: recognised, and answered with half the micro-batch at the same global batch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError
from ava_core.files import write_json

log = logging.getLogger(__name__)
T = TypeVar("T")
FILE = "micro_batch.json"
_MESSAGES = (
    "defaultcpuallocator: can't allocate memory",  # PyTorch's allocator on a CPU
    "defaultcpuallocator: not enough memory",  # the same on Windows
    "std::bad_alloc",  # our kernels and oneDNN
    "cannot allocate memory",  # mmap and fork
    "out of memory",  # CUDA and its libraries, outside of PyTorch's allocator
    "cublas_status_alloc_failed",
)


class OutOfMemory(Exception):
    """An allocation of a training step failed. Holds the allocator's message, and nothing of the step."""


@contextlib.contextmanager
def raises_out_of_memory() -> Iterator[None]:
    """Turn what allocators raise within it into `OutOfMemory`; everything else passes.

    The frames of what failed are emptied, so that their tensors are free before anybody catches.
    """
    message = None
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        message = _allocation_fault(error)
        if message is None:
            raise
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None  # what is raised below holds this error as its context
    if message is not None:
        raise OutOfMemory(message) from None


def _allocation_fault(error: BaseException) -> str | None:
    """One line about the allocation that failed; None if the error is about something else."""
    text = str(error)
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(m in text.lower() for m in _MESSAGES)
    if not known:
        return None
    return next((line.strip() for line in text.splitlines() if line.strip()), "out of memory")


class MicroBatch:
    """Sequences per pass of one process in this run: as configured, or less after memory ran out.

    The size is kept in a file, so that a resumed run begins with what worked. It applies to the configured size
    alone: another one in the configuration begins anew.

    Args:
        config: the training section.
        state_folder: outlives a killed run.
    """

    def __init__(self, config: TrainConfig, state_folder: Path) -> None:
        self.config = config
        self._file = state_folder / FILE
        self.size = self._read() or config.micro_batch_size

    def halve(self, fault: object) -> None:
        """Lower the size to its largest divisor that is at most half of it, log that, and keep it in the file.

        Passes that are accumulated become more at the same global batch: a step computes the same mean.

        Args:
            fault: what the allocator said, or the `OutOfMemory` that holds it.

        Raises:
            AvaError: one sequence at a time was too much already.
        """
        config, before = self.config, self.size
        if before == 1:
            raise AvaError(
                f"out of memory with one sequence of {config.sequence_length} tokens per pass ({fault}): lower"
                " train.sequence_length, or set train.memory_budget or train.gradient_checkpointing"
            )
        self.size = next(size for size in range(before // 2, 0, -1) if before % size == 0)
        write_json(self._file, {"configured": config.micro_batch_size, "size": self.size})
        log.warning(
            "out of memory (%s): going on with train.micro_batch_size = %d instead of %d, and %d passes accumulated"
            " for the same global batch",
            *(fault, self.size, before, config.global_batch_size // (self.size * config.processes)),
        )

    def configured(self) -> TrainConfig:
        """The configuration with this size."""
        return self.config.model_copy(update={"micro_batch_size": self.size})

    def _read(self) -> int | None:
        try:
            kept = json.loads(self._file.read_text())
            configured, size = int(kept["configured"]), int(kept["size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        usable = configured == self.config.micro_batch_size and 0 < size <= configured and configured % size == 0
        return size if usable else None


def until_it_fits(sizes: MicroBatch, run: Callable[[TrainConfig], T]) -> T:
    """Call `run` with the configuration for this micro-batch, and again with half of it while memory runs out.

    `run` must build all that it needs from scratch, seeds included, and go on from the last checkpoint: nothing of a
    failed attempt is left. That is why this is a function of its own: until the `except` clause is left, the exception
    holds the frames of the attempt, and they its engine. No caller may hold engine or model itself.

    For one process. Of several, the others wait in the middle of a collective operation for the one that failed: they
    must end, and whoever started them calls `halve` and starts them again.

    Args:
        sizes: where the size is kept.
        run: trains; raises `OutOfMemory` where `raises_out_of_memory` says so.

    Raises:
        AvaError: one sequence is too much.
    """
    while True:
        try:
            return run(sizes.configured())
        except OutOfMemory as error:
            fault = str(error)
        free_memory()
        sizes.halve(fault)


def free_memory() -> None:
    """Free unreferenced memory: cycles of Python objects, the caches of the allocators."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl doesn't
        if trim is not None:
            trim(0)
