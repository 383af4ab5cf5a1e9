"""The process that logs a training to a tracker while it runs: MLflow's server, or one of `run.trackers`.

`ava_core.tracking.live` starts one per tracker beside the training: there it costs the training's steps nothing
(importing MLflow alone takes 3.4 s), and no fault of a server or a library reaches them. It tails the files in the
training's state folder; how far the tracker is, is asked of the tracker (`ava_core.tracking.sinks`).

    python -m ava_core.tracking.sender     # reads an `Assignment` as a line of JSON, then `finish` or `fail`
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError, typed_line
from ava_core.tracking.faults import unreachable
from ava_core.tracking.feed import Feed
from ava_core.tracking.sinks import MLFLOW, Assignment, Sink, open_sink

HISTORY, SYSTEM = "history.jsonl", "system.jsonl"
STATUS = {"finish": "FINISHED", "fail": "FAILED", "": "KILLED"}
"""How the run ends, by the last word of the training; it was killed if its end of the pipe closes without one."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts to reach a server that doesn't answer, at most."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Attempts are repeated here, where the end of the training is heard."""

Report = Callable[[str, Any], None]
"""Called with `run` (address of its page), `fault` (one line) and `sent` (the last step that the server has)."""


@dataclass(kw_only=True)
class Sender:
    """Sends the rows that were appended to the files since it last looked.

    Args:
        assignment: which files are sent to which run.
        report: called with each event.
    """

    assignment: Assignment
    report: Report
    _sink: Sink | None = field(default=None, init=False)
    _history: Feed = field(init=False)
    _system: Feed = field(init=False)

    def deliver(self) -> None:
        """Send all that the tracker lacks.

        After a failure the next call asks the tracker anew what it has: an answer that was lost may have been a yes.

        Raises:
            Exception: whatever the tracker's library, its HTTP client or a database driver raises; AvaError: in one
                line.
        """
        if self._sink is None:
            self._sink = self._open()
        try:
            for step in self._sink.log_history(self._history.read()):
                self.report("sent", step)
            if rows := self._system.read():
                self._sink.log_system(rows)
        except BaseException:
            self._sink = None
            raise

    def end(self, status: str) -> None:
        """End the run, with the files that belong to it."""
        if self._sink is not None:
            for name, folder in self.assignment.attachments.items():
                self._sink.attach(name, folder)
            self._sink.end(status)

    def _open(self) -> Sink:
        sink = open_sink(self.assignment)
        state = Path(self.assignment.state)
        self._history = Feed(state / HISTORY, "step", sink.last_step)
        self._system = Feed(state / SYSTEM, "time", sink.last_time)
        self.report("run", sink.address)
        self.report("sent", sink.last_step)
        return sink


def deliver_until_ended(sender: Sender, inbox: queue.Queue[str]) -> None:
    """Deliver until the training has said that it ends and all rows are sent, or the time for that is over."""
    given = sender.assignment
    last_word: str | None = None
    failures, wait, deadline = 0, 0.0, 0.0
    while True:
        if last_word is None:
            try:
                last_word = inbox.get(timeout=wait) if wait else inbox.get_nowait()
                deadline = time.monotonic() + given.closing
            except queue.Empty:
                pass
        else:
            time.sleep(wait)
        try:
            sender.deliver()
            if last_word is not None:
                sender.end(STATUS[last_word])
                return
            failures, wait = 0, given.every
        except Exception as error:  # see Sender.deliver
            if not failures:
                sender.report("fault", _explain(given, error))
            failures += 1
            wait = min(given.every * 2**failures, LONGEST_WAIT)
            if last_word is not None:
                wait = min(wait, 1.0)
                if time.monotonic() + wait > deadline:
                    return


def _explain(given: Assignment, error: Exception) -> str:
    if isinstance(error, AvaError):
        return str(error)
    return str(unreachable(given.uri, error)) if given.tracker == MLFLOW else typed_line(error)


def main() -> None:
    """Take an assignment from standard input, and report on standard output in lines of JSON."""
    os.nice(10)
    for name, value in IMPATIENT.items():
        os.environ.setdefault(name, value)
    assignment = Assignment(**json.loads(sys.stdin.readline()))
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is none of our lines
    inbox: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: inbox.put(sys.stdin.readline().strip()), daemon=True).start()

    def report(event: str, value: Any) -> None:
        with suppress(OSError):  # the training was killed; the run is ended all the same
            output.write(json.dumps({event: value}) + "\n")

    deliver_until_ended(Sender(assignment=assignment, report=report), inbox)
    os._exit(0)  # the thread may hold standard input, and there is nothing to clean up


if __name__ == "__main__":
    main()
