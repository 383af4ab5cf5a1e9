"""One command as a process of its own group: its lines go to a log file and on, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

GRACE_SECONDS = 15.0
"""Time to end after SIGTERM, before SIGKILL: a step flushes its log and leaves its state as it is."""
DRAIN_SECONDS = 5.0


def run_command(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    show: Callable[[str], None] = lambda line: None,
) -> int:
    """Run a command without a shell, in a process group and session of its own, and wait for it.

    Whatever ends the wait (Ctrl-C, SIGTERM, an error) ends the whole group; so does the command's own end, for a
    process that it left running would hold its files and memory.

    Args:
        command: program and arguments; the program is looked up in `environment`'s PATH.
        environment: all of the process's environment.
        log: file that gets every line of standard output and standard error.
        show: is given each line, without its end, as it comes.

    Returns:
        The exit code, negative for the number of a signal that ended it.

    Raises:
        OSError: the program can't be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, so that one can follow it, and so that nothing is left to fail when it is closed on a full disk.
    with log.open("wb", buffering=0) as file:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
        )
        reader = threading.Thread(target=_copy_lines, args=(process.stdout, file, show), daemon=True)
        reader.start()
        try:
            code = process.wait()
        except BaseException:
            _end_group(process)
            raise
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            reader.join(DRAIN_SECONDS)
        return code


def describe_exit(code: int) -> str:
    """What an exit code of `run_command` means, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _copy_lines(stream: IO[str] | None, file: IO[bytes], show: Callable[[str], None]) -> None:
    """Copy until the last writer has closed; a full disk or a closed terminal must not stop the reading.

    A process whose output nobody reads hangs as soon as the pipe is full.
    """
    for line in stream or ():
        with contextlib.suppress(
            OSError, ValueError
        ):  # ValueError: the file is closed, a left-over process still writes
            file.write(line.encode())
        with contextlib.suppress(OSError, ValueError):
            show(line.rstrip("\n"))


def _end_group(process: subprocess.Popen[str]) -> None:
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
