"""The process that logs a training to the tracking server while it runs.

`ava_core.tracking.live` starts it beside the training: there it costs the training's steps nothing (importing MLflow
alone takes 3.4 s), and no fault of the server or of MLflow reaches them. It tails the files in the training's state
folder; how far the server is, is asked of the server.

    python -m ava_core.tracking.sender     # reads an `Assignment` as a line of JSON, then `finish` or `fail`
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.errors import AvaError
from ava_core.tracking.address import run_url
from ava_core.tracking.connection import connect, experiment
from ava_core.tracking.faults import unreachable
from ava_core.tracking.feed import Feed
from ava_core.tracking.records import METRICS_PER_BATCH, row_points
from ava_core.tracking.run import TrackedRun, open_run

if TYPE_CHECKING:
    from mlflow.entities import Metric

HISTORY, SYSTEM = "history.jsonl", "system.jsonl"
HISTORY_MARK, SYSTEM_MARK = "tokens_seen", "system/host_memory_bytes"
"""Figures that every row of the file has: their last step on the server is how far it is."""
STATUS = {"finish": "FINISHED", "fail": "FAILED", "": "KILLED"}
"""How the run ends, by the last word of the training; it was killed if its end of the pipe closes without one."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts to reach a server that doesn't answer, at most."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Attempts are repeated here, where the end of the training is heard."""

Report = Callable[[str, Any], None]
"""Called with `run` (address of its page), `fault` (one line) and `sent` (the last step that the server has)."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which files are sent to which run; plain values.

    Attributes:
        uri: address of the tracking server.
        experiment: its name; used unless MLFLOW_RUN_ID names a run.
        name: of a new run.
        identity: tags that only this training's run has.
        tags: further tags.
        parameters: of the run.
        state: the training's state folder.
        every: seconds between two reads of the files.
        closing: seconds after the training's end in which the rest is tried.
    """

    uri: str
    experiment: str
    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    state: str
    every: float = 2.0
    closing: float = 10.0


@dataclass(kw_only=True)
class Sender:
    """Sends the rows that were appended to the files since it last looked.

    Args:
        assignment: which files are sent to which run.
        report: called with each event.
    """

    assignment: Assignment
    report: Report
    _run: TrackedRun | None = field(default=None, init=False)
    _history: Feed = field(init=False)
    _system: Feed = field(init=False)

    def deliver(self) -> None:
        """Send all that the server lacks.

        After a failure the next call asks the server anew what it has: an answer that was lost may have been a yes.

        Raises:
            Exception: whatever MLflow, its HTTP client or a database driver raises; AvaError: in one line.
        """
        if self._run is None:
            self._run = self._open()
        try:
            self._send(self._run)
        except BaseException:
            self._run = None
            raise

    def end(self, status: str) -> None:
        """End the run, unless it is someone else's."""
        if self._run is not None and self._run.ours:
            self._run.client.set_terminated(self._run.run_id, status=status)

    def _open(self) -> TrackedRun:
        given = self.assignment
        client = connect(given.uri)
        experiment_id = (
            "" if os.environ.get("MLFLOW_RUN_ID") else experiment(client, given.uri, given.experiment).experiment_id
        )
        run = open_run(client, experiment_id, name=given.name, identity=given.identity, tags=given.tags)
        if run.ours:
            client.update_run(run.run_id, status="RUNNING")  # a resumed training's run may have ended as KILLED
        run.log_parameters(given.parameters)
        history = client.get_metric_history(run.run_id, HISTORY_MARK)
        system = client.get_metric_history(run.run_id, SYSTEM_MARK)
        last = max((metric.step for metric in history), default=0)
        state = Path(given.state)
        self._history = Feed(state / HISTORY, "step", last)
        self._system = Feed(state / SYSTEM, "time", max((metric.timestamp for metric in system), default=0))
        self.report("run", run_url(given.uri, run.experiment_id, run.run_id))
        self.report("sent", last)
        return run

    def _send(self, run: TrackedRun) -> None:
        history = ((int(row["step"]), _metrics(row, run.started)) for row in self._history.read())
        for step, metrics in _requests(history):
            run.client.log_batch(run.run_id, metrics=metrics)
            self.report("sent", step)
        system = ((int(row["time"]), _metrics(row, int(row.pop("time")), "system/")) for row in self._system.read())
        for _, metrics in _requests(system):
            run.client.log_batch(run.run_id, metrics=metrics)


def _metrics(row: dict[str, Any], time_ms: int, prefix: str = "") -> list[Metric]:
    """A row's figures at a fixed time: sent twice, they are the same rows for MLflow, which keeps one of them."""
    from mlflow.entities import Metric

    return [Metric(f"{prefix}{point.name}", point.value, time_ms, point.step) for point in row_points(row)]


def _requests(rows: Iterator[tuple[int, list[Metric]]]) -> Iterator[tuple[int, Sequence[Metric]]]:
    """The rows in as few requests as MLflow allows, with the position of the last row in each; none is divided."""
    metrics: list[Metric] = []
    last = 0
    for position, row in rows:
        if metrics and len(metrics) + len(row) > METRICS_PER_BATCH:
            yield last, metrics
            metrics = []
        metrics, last = metrics + row, position
    if metrics:
        yield last, metrics


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
                sender.report("fault", str(error if isinstance(error, AvaError) else unreachable(given.uri, error)))
            failures += 1
            wait = min(given.every * 2**failures, LONGEST_WAIT)
            if last_word is not None:
                wait = min(wait, 1.0)
                if time.monotonic() + wait > deadline:
                    return


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
