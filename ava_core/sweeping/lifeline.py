"""A program that doesn't outlive the sweep that started it, however that one ends.

    python -m ava_core.sweeping.lifeline PID PROGRAM ARGUMENT...

becomes PROGRAM, which gets SIGTERM when the process PID, its parent, ends; the kernel keeps that through execve(2).
"""

from __future__ import annotations

import os
import signal
import sys

from ava_core.launching.lifetime import die_with_parent


def main() -> None:
    """Ask the kernel for it, and become the program."""
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  a list, no shell


if __name__ == "__main__":
    main()
