"""A process that is known beyond the program that started it, when its PID alone may be another one's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: its id.
        started: the kernel's start time of that process, so that a reused PID isn't taken for it.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this PID now."""
        return cls(pid, start_time(pid) or "")

    @property
    def running(self) -> bool:
        """Whether that very process still runs."""
        return start_time(self.pid) == self.started

    def end_group(self, seconds: float) -> None:
        """End its process group: by SIGTERM, and by SIGKILL if the process still runs after so many seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.running:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            deadline = time.monotonic() + seconds
            while self.running and time.monotonic() < deadline:
                time.sleep(0.05)


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat, clock ticks since boot; None if the process is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
