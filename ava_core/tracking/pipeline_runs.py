"""A pipeline run in MLflow: one parent run, and a nested run for each of its steps.

The first step makes the parent, with the pipeline run's id as a tag. Steps may start at the same time on different
machines, and MLflow has no unique key for runs. So each step searches again after it made a run: the oldest run
stays, and the others are deleted. A step searches once more at its end, since an earlier run can become visible
later, and moves its own run to the parent that stayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ava_core.config.run import RunConfig
from ava_core.tracking.authorship import authorship
from ava_core.tracking.labels import run_tags
from ava_core.tracking.rest import Run, Server
from ava_core.tracking.run import OWNED

PIPELINE_RUN = "ava.pipeline_run"
TASK = "ava.task"
"""A nested run has this tag, the parent doesn't."""
PARENT = "mlflow.parentRunId"
RUNNING, KILLED = "RUNNING", "KILLED"
VARIABLE = "AVA_PIPELINE_RUN"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A step of a pipeline run.

    Attributes:
        pipeline_run: the pipeline run's id.
        name: the step's name, unique in its pipeline run.
        experiment: name of the experiment that the runs belong to.
        tags: further tags of the nested run.
        run: name, tags and notes of the parent.
        source: the program that the parent is of, for MLflow's column Source.
    """

    pipeline_run: str
    name: str
    experiment: str
    tags: Mapping[str, str]
    run: RunConfig = field(default_factory=RunConfig)
    source: str = "ava pipeline"


def pipeline_run_id(environment: Mapping[str, str]) -> str | None:
    """The id of the pipeline run that this step belongs to; None outside of pipelines, or where it is no id."""
    given = environment.get(VARIABLE, "").strip()
    return given if _ID.fullmatch(given) else None


def identity(pipeline_run: str, name: str) -> dict[str, str]:
    """The tags by which a step's run is known."""
    return {PIPELINE_RUN: pipeline_run, TASK: name}


def open_task(server: Server, task: Task) -> tuple[Run, Run]:
    """The parent of the pipeline run and the step's run nested under it; both are made where they are missing."""
    experiment_id = server.experiment_id(task.experiment)
    parent, run = _find(server, experiment_id, task)
    if parent is None:
        tags = {PIPELINE_RUN: task.pipeline_run, **authorship(task.source), **run_tags(task.run), OWNED: "true"}
        server.create_run(experiment_id, task.run.name or task.pipeline_run, tags)
        parent, run = _find(server, experiment_id, task)
    if run is None and parent is not None:
        tags = {**task.tags, **identity(task.pipeline_run, task.name), PARENT: parent.run_id, OWNED: "true"}
        server.create_run(experiment_id, task.name, tags)
        parent, run = _find(server, experiment_id, task)
    if parent is None or run is None:
        raise ValueError("a run that was just made isn't found")
    if parent.status != RUNNING:  # a pipeline run that failed and is tried again
        server.set_status(parent.run_id, RUNNING)
    if run.tags.get(PARENT) != parent.run_id:
        server.log(run, tags={PARENT: parent.run_id})
    return parent, run


def end_pipeline(server: Server, pipeline_run: str, status: str, tags: Mapping[str, str]) -> Run | None:
    """End the parent run, and set the steps' runs that are still open to KILLED.

    Args:
        server: the tracking server.
        pipeline_run: the pipeline run's id.
        status: FINISHED, FAILED or KILLED.
        tags: of the parent.

    Returns:
        The parent run; None if there is none.
    """
    found = server.find_runs(server.experiment_ids(), PIPELINE_RUN, pipeline_run)
    for run in found:
        if TASK in run.tags and run.status == RUNNING:
            server.set_status(run.run_id, KILLED)
    parent = next((run for run in found if TASK not in run.tags), None)
    if parent is None:
        return None
    server.log(parent, tags=tags)
    server.set_status(parent.run_id, status)
    return parent


def _find(server: Server, experiment_id: str, task: Task) -> tuple[Run | None, Run | None]:
    """The parent and the step's run: the oldest of each; younger ones are deleted."""
    found = server.find_runs([experiment_id], PIPELINE_RUN, task.pipeline_run)
    kept = []
    for name in (None, task.name):
        same = [run for run in found if run.tags.get(TASK) == name]
        for younger in same[1:]:
            server.delete_run(younger.run_id)
        kept.append(same[0] if same else None)
    return kept[0], kept[1]
