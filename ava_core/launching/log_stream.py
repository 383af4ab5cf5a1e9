"""The log of a job that runs elsewhere: its lines, read while other things are watched, and shown as our own."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from ava_core.progress import Advance, Progress

log = logging.getLogger(__name__)
REST_SECONDS = 20.0
"""How long the last lines of a job that has ended may take to come."""
TAIL_LINES = 3
"""Last lines of the log that the error of a failed job quotes."""
_OURS = re.compile(r"(?:\d\d:\d\d:\d\d )(DEBUG|INFO|WARNING|ERROR) +(.*)")
"""A line as `runtime.logs` writes it on a terminal."""
_PROGRESS = re.compile(r"(\w[\w ]*?) +(\d+)%(.*)")
"""A line of `ava_core.progress`: name, percentage, figures."""
_FROM_MPIRUN = re.compile(
    r"-{10,}|Primary job|a non-zero exit code|mpirun (?:detected|noticed)|[Pp]rocess name:|Exit code:"
)


class LogStream:
    """Reads a log in a thread of its own, so that a connection that hangs hides nothing else.

    Args:
        read: gives all lines from the beginning, and the further ones as they come; called again when it has ended,
            for servers close a stream that lasts, and then what came before is left out.
    """

    def __init__(self, read: Callable[[], Iterable[str]]) -> None:
        self._read = read
        self._queue: queue.Queue[str] = queue.Queue()
        self._queued = 0
        self._thread: threading.Thread | None = None

    def lines(self, seconds: float) -> Iterator[str]:
        """Lines that come within so many seconds; a stream that has ended is opened again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._fill, args=(self._queued,), daemon=True)
            self._thread.start()
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                yield self._queue.get(timeout=remaining)
            except queue.Empty:
                return

    def rest(self) -> Iterator[str]:
        """Lines that are left once the job has ended, for `REST_SECONDS` at most."""
        deadline = time.monotonic() + REST_SECONDS
        while time.monotonic() < deadline:
            yield from self.lines(0.2)
            if self._thread is not None and not self._thread.is_alive() and self._queue.empty():
                return

    def _fill(self, skipped: int) -> None:
        try:
            for number, line in enumerate(self._read()):
                if number >= skipped:
                    self._queue.put(line)
                    self._queued += 1
        except Exception as error:  # whoever reads the lines asks the cluster itself, and says so if it is away
            log.debug("the log can't be read: %s", error)


class Shown:
    """Shows the lines of a job's log as our own: its progress as progress, its levels as levels.

    Attributes:
        count: lines so far.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stack = ExitStack()
        self._bars: dict[str, Advance] = {}
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._said: str | None = None
        self.count = 0

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def show(self, line: str) -> None:
        """Show one line."""
        self.count += 1
        line = line.rstrip()
        if line.startswith("ava: "):  # mpirun may put what two ranks say at the same time into one line
            self._said = self._said or line.removeprefix("ava: ").partition("ava: ")[0]
        elif line and not _FROM_MPIRUN.match(line):
            self._tail.append(line)
        match = _OURS.fullmatch(line)
        level, text = (match[1], match[2]) if match else ("INFO", line)
        if moved := _PROGRESS.fullmatch(text):
            self._advance(moved[1], float(moved[2]), moved[3])
        elif text:
            log.log(logging.getLevelNamesMapping()[level], "%s", text)

    def tail(self) -> str:
        """What `ava` said first in the job, before the ranks that lost another one for it, else the last lines."""
        return self._said or " / ".join(self._tail)

    def _advance(self, name: str, percent: float, rest: str) -> None:
        if name not in self._bars:
            self._bars[name] = self._stack.enter_context(self._progress.task(name, 100.0))
        figures = [part.rpartition(" ") for part in rest.split("  ") if part and not part.startswith("ETA")]
        self._bars[name](percent, **{name.strip(): value for name, _, value in figures if name.strip()})
