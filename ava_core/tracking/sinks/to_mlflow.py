"""MLflow: the run on a tracking server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.tracking.address import run_url
from ava_core.tracking.connection import connect, experiment
from ava_core.tracking.records import METRICS_PER_BATCH, row_points
from ava_core.tracking.run import TrackedRun, open_run
from ava_core.tracking.sinks.sink import Assignment

if TYPE_CHECKING:
    from mlflow.entities import Metric

HISTORY_MARK, SYSTEM_MARK = "tokens_seen", "system/host_memory_bytes"
"""Figures that every row of the file has: their last step on the server is how far it is."""


class MLflowSink:
    """See `Sink`. How far the server is, is asked of the server: an answer that was lost may have been a yes."""

    def __init__(self, run: TrackedRun, uri: str) -> None:
        self._run = run
        self.address = run_url(uri, run.experiment_id, run.run_id)
        history = run.client.get_metric_history(run.run_id, HISTORY_MARK)
        system = run.client.get_metric_history(run.run_id, SYSTEM_MARK)
        self.last_step = max((metric.step for metric in history), default=0)
        self.last_time = max((metric.timestamp for metric in system), default=0)

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[int]:
        """In as few requests as MLflow allows; no row is divided."""
        measured = ((int(row["step"]), _metrics(row, self._run.started)) for row in rows)
        for step, metrics in _requests(measured):
            self._run.client.log_batch(self._run.run_id, metrics=metrics)
            yield step

    def log_system(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """At the times at which they were measured."""
        timed = ((int(row["time"]), {name: value for name, value in row.items() if name != "time"}) for row in rows)
        for _, metrics in _requests((time, _metrics(row, time, "system/")) for time, row in timed):
            self._run.client.log_batch(self._run.run_id, metrics=metrics)

    def attach(self, name: str, folder: str) -> None:
        """As the run's artifacts."""
        if Path(folder).is_dir():
            self._run.client.log_artifacts(self._run.run_id, folder, name)

    def end(self, status: str) -> None:
        """Unless the run is someone else's."""
        if self._run.ours:
            self._run.client.set_terminated(self._run.run_id, status=status)


def open_sink(given: Assignment) -> MLflowSink:
    """The run that MLFLOW_RUN_ID names, the one that an earlier attempt left, or a new one."""
    client = connect(given.uri)
    experiment_id = (
        "" if os.environ.get("MLFLOW_RUN_ID") else experiment(client, given.uri, given.experiment).experiment_id
    )
    run = open_run(client, experiment_id, name=given.name, identity=given.identity, tags=given.tags)
    if run.ours:
        client.update_run(run.run_id, status="RUNNING")  # a resumed training's run may have ended as KILLED
    run.log_parameters(given.parameters)
    return MLflowSink(run, given.uri)


def _metrics(row: Mapping[str, Any], time_ms: int, prefix: str = "") -> list[Metric]:
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
