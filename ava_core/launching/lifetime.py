"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends, even by SIGKILL (Linux: PR_SET_PDEATHSIG).

    Args:
        parent: the parent's process id, if known: when it has ended already, this process ends at once.
        number: the signal.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if parent is not None and os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), number)
