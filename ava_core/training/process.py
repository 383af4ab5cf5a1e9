"""What is set once per process before training: threads, memory allocator, seeds."""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import resource
import sys
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# Parameters of mallopt(3) in glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_HUGE = 2**27
"""Bytes of a block that goes back to the kernel: what is computed with it takes far longer than its page faults."""


def prepare(threads: int, seed: int) -> None:
    """Set the number of CPU threads, keep freed memory in the process, and seed PyTorch."""
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.manual_seed(seed)


def _keep_freed_memory() -> None:
    """Let glibc keep large blocks that were freed instead of returning them to the kernel.

    A training step frees and allocates the same large tensors again and again; by default each of them is mapped
    anew, and every page of it faulted in again. Huge ones are, all the same: glibc finds no room for an aligned block
    in one of the same size that was freed, so that at a sequence length of 4096 attention's temporaries took twice
    the memory that was in use at any moment.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # a C library that isn't glibc
        return
    # Older versions take no threshold above 32 MiB: there all blocks are kept.
    kept = mallopt(_M_MMAP_THRESHOLD, _HUGE) or mallopt(_M_MMAP_MAX, 0)
    if not (mallopt(_M_TRIM_THRESHOLD, _NEVER) and kept):
        log.debug("mallopt refused a setting: training runs, with more page faults")


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had, or on a GPU the most that PyTorch allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:  # not ru_maxrss, which begins with the memory of the program that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
