"""Where the tasks of a local run are: processes of this machine, or containers.

An executor starts a task and hands back what is needed to supervise it. All else is the same for both, and is here and
in `pipelines.runner`: the log, the time limit, the end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from ava_core.redaction import redact

GRACE_SECONDS = 15.0
"""Time to end after SIGTERM, before SIGKILL: a step flushes its log and leaves its state as it is."""
DRAIN_SECONDS = 30.0
"""Time for the last lines to arrive, once the task has ended."""
SIGNAL_BASE = 128
"""What a shell, and a container's init, add to the number of the signal that ended a program."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a task ended.

    Attributes:
        code: exit code; negative, or above SIGNAL_BASE, for the number of a signal.
        out_of_memory: the kernel is known to have killed it for its memory.
        timeout: the seconds that it was allowed, if it was ended for taking longer.
    """

    code: int
    out_of_memory: bool = False
    timeout: float | None = None

    @property
    def succeeded(self) -> bool:
        """It ended by itself, with exit code 0."""
        return self.code == 0 and self.timeout is None

    def __str__(self) -> str:
        if self.timeout is not None:
            return f"timed out after {self.timeout:g} s"
        number = -self.code if self.code < 0 else self.code - SIGNAL_BASE
        if number <= 0:
            return f"exit code {self.code}"
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"signal {number}" if self.code < 0 else f"exit code {self.code}"
        if self.out_of_memory:
            return f"{name} (out of memory)"
        return f"{name} (out of memory?)" if name == "SIGKILL" else name


class RunningTask(Protocol):
    """A task that was started. Its methods may be called from several threads."""

    @property
    def handle(self) -> Any:
        """By which another process finds it, as JSON: a process (`pipelines.processes`), or a container's name."""
        ...

    def lines(self) -> Iterator[bytes]:
        """Standard output and standard error, line by line, until it has ended."""
        ...

    def wait(self, seconds: float | None = None) -> Ending | None:
        """How it ended; None if it still runs after so many seconds.

        Raises:
            AvaError: that can't be known.
        """
        ...

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End it, and what it started."""
        ...

    def close(self) -> None:
        """Leave nothing of it behind; called once, whatever happened."""
        ...


class Executor(Protocol):
    """Starts tasks."""

    def start(self, command: Sequence[str], *, image: str, name: str, variables: Mapping[str, str]) -> RunningTask:
        """Start a command without a shell.

        Args:
            command: program and arguments.
            image: image of the task's container, for an executor that has containers.
            name: what the task is called there.
            variables: environment variables, over those that the executor gives every task.

        Raises:
            AvaError: it can't be started.
        """
        ...


def supervise(
    task: RunningTask,
    *,
    log: Path,
    show: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
) -> Ending:
    """Wait for a task, copying its lines to a log file and to `show`; end it when it takes longer than it may.

    Args:
        task: just started; it is closed when this returns or raises.
        log: file that gets every line.
        show: is given each line, without its end, as it comes.
        timeout: seconds that the task may take; None for as long as it likes.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that one can read along, and so that nothing is left to fail when it is closed on a full disk.
        with log.open("wb", buffering=0) as file:
            reader = threading.Thread(target=_copy_lines, args=(task.lines(), file, show), daemon=True)
            reader.start()
            ending = task.wait(timeout) or replace(end(task), timeout=timeout)
            reader.join(DRAIN_SECONDS)
            return ending
    finally:
        task.close()


def end(task: RunningTask, grace: float = GRACE_SECONDS) -> Ending:
    """Ask a task to end, and kill it if it doesn't."""
    task.terminate()
    ending = task.wait(grace)
    if ending is None:
        task.kill()
        ending = task.wait()
    assert ending is not None, "waiting without a limit ends with the task"
    return ending


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, with their ends, from pieces cut anywhere; the last line may lack its end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _copy_lines(lines: Iterator[bytes], file: IO[bytes], show: Callable[[str], None]) -> None:
    """Copy until the last writer has closed; a full disk or a closed terminal must not stop the reading.

    A process whose output nobody reads hangs as soon as the pipe is full.
    """
    for raw in lines:
        line = redact(raw.decode(errors="surrogateescape"))
        # ValueError: the file is closed, and something that the task left running still writes.
        with contextlib.suppress(OSError, ValueError):
            file.write(line.encode(errors="surrogateescape"))
        with contextlib.suppress(OSError, ValueError):
            show(line.encode(errors="surrogateescape").decode(errors="replace").rstrip("\r\n"))
