"""A sweep in MLflow: one parent run, and a nested run for each trial, which its training fills while it runs.

Only where the environment names a tracking server. It never fails a trial: a server that is away costs a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from ava_core.redaction import redact
from ava_core.tracking.address import RUN_ID, recording_uri, run_url
from ava_core.tracking.authorship import authorship
from ava_core.tracking.pipeline_runs import Task, end_pipeline, open_task
from ava_core.tracking.records import Point, flatten
from ava_core.tracking.rest import Server
from ava_core.tracking.unfailing import PATIENCE, never_failing, server_uri

log = logging.getLogger(__name__)
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
STATE, REASON = "ava.trial.state", "ava.trial.reason"


class SweepRuns:
    """The runs of a sweep.

    Args:
        name: of the sweep.
        uid: what tells it from others of its name.
        experiment: of MLflow.
        environment: os.environ by default.
    """

    def __init__(self, name: str, uid: str, experiment: str, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(os.environ if environment is None else environment)
        self.environment.pop(RUN_ID, None)  # of whoever runs the sweep
        self.parent, self.experiment = f"{name}-{uid[:8]}", experiment
        self.uri = _server_uri(self.environment)
        self.url: str | None = None

    def begin(self, number: int, settings: Mapping[str, object]) -> dict[str, str]:
        """Open the trial's run, and its parent if it is the first; the variables that give a training its run."""
        if self.uri is None:
            return {}
        with never_failing(self.uri, "the trial isn't shown"):
            server = Server(self.uri, self.environment, PATIENCE)
            parent, run = open_task(server, self._task(number))
            self.url = run_url(self.uri, parent.experiment_id, parent.run_id)
            server.log(run, tags={STATE: "running"}, parameters=flatten(dict(settings)))
            return {RUN_ID: run.run_id, "MLFLOW_TRACKING_URI": self.uri}
        return {}

    def end(self, number: int, state: str, figures: Sequence[Point] = (), reason: str = "") -> None:
        """Say how the trial ended, with the figures of its objectives."""
        if self.uri is None:
            return
        with never_failing(self.uri, "the trial's end isn't recorded"):
            server = Server(self.uri, self.environment, PATIENCE)
            _, run = open_task(server, self._task(number))
            server.log(run, figures, {STATE: state, **({REASON: redact(reason)[:1000]} if reason else {})})
            server.set_status(run.run_id, STATUS[state])

    def finish(self, tags: Mapping[str, str], figures: Sequence[Point]) -> None:
        """End the parent: no trial runs any more. It gets the best trial's figures."""
        if self.uri is None:
            return
        with never_failing(self.uri, "the sweep's end isn't recorded"):
            server = Server(self.uri, self.environment, PATIENCE)
            parent = end_pipeline(server, self.parent, "FINISHED", tags)
            if parent is not None:
                server.log(parent, figures)
                self.url = run_url(self.uri, parent.experiment_id, parent.run_id)

    def _task(self, number: int) -> Task:
        name = f"trial-{number:04d}"
        tags = {"ava.sweep": self.parent, **authorship("ava sweep")}
        return Task(pipeline_run=self.parent, name=name, experiment=self.experiment, tags=tags, source="ava sweep")


def _server_uri(environment: Mapping[str, str]) -> str | None:
    if not recording_uri(environment):
        return None
    uri = server_uri(environment)
    if uri is None:
        log.warning("mlflow: nothing is recorded: a sweep's runs need a server, not a database: see `make mlflow-ui`")
    return uri
