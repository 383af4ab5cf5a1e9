"""One MLflow run: opened or resumed, and filled in a way that can be repeated.

Every write has the same effect when it is made twice (the same metric rows, the same parameters, the same files), so a
step that was killed fills the same run again from the start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.errors import AvaError
from ava_core.tracking.address import RUN_ID
from ava_core.tracking.records import (
    DATASET_CONTEXT,
    METRICS_PER_BATCH,
    PARAMETERS_PER_BATCH,
    Corpus,
    Point,
    batches,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tag of the runs that we opened and must end; a run that was given to us lacks it.
OWNED = "ava.owned"


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run, and whether we opened it.

    Attributes:
        client: client of the server.
        run_id: id of the run.
        experiment_id: id of the run's experiment.
        started: start of the run in milliseconds since 1970; the time of all its metrics, so that a repeated write
            repeats the row and adds none.
        ours: False for a run that someone else (KFP's MLflow plugin) opened and will close.
    """

    client: MlflowClient
    run_id: str
    experiment_id: str
    started: int
    ours: bool

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Log parameters that the run doesn't have yet; MLflow refuses to change one."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in parameters.items() if name not in known]
        for batch in batches(new, PARAMETERS_PER_BATCH):
            self.client.log_batch(self.run_id, params=batch)

    def log_points(self, points: Iterable[Point], model_id: str | None = None) -> None:
        """Log metric values, a thousand per request; `model_id` shows them on the logged model's page as well."""
        from mlflow.entities import Metric

        metrics = (Metric(p.name, p.value, self.started, p.step, model_id=model_id, run_id=self.run_id) for p in points)
        for batch in batches(metrics, METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=batch)

    def log_corpus(self, corpus: Corpus) -> None:
        """Log the corpus as a dataset input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(**corpus.as_dataset())
        self.client.log_inputs(
            self.run_id, datasets=[DatasetInput(dataset=dataset, tags=[InputTag(**DATASET_CONTEXT)])]
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; later values replace earlier ones."""
        from mlflow.entities import RunTag

        for batch in batches((RunTag(name, value) for name, value in tags.items()), PARAMETERS_PER_BATCH):
            self.client.log_batch(self.run_id, tags=batch)

    def log_files(self, folder: Path) -> None:
        """Upload everything below `folder` to the root of the run's artifacts."""
        self.client.log_artifacts(self.run_id, str(folder))

    def close(self, failed: bool = False) -> None:
        """End the run, unless it is someone else's or has ended before."""
        if self.ours and self.client.get_run(self.run_id).info.status == "RUNNING":
            self.client.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")


def open_run(
    client: MlflowClient,
    experiment_id: str,
    *,
    name: str,
    identity: Mapping[str, str],
    tags: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> TrackedRun:
    """The run that MLFLOW_RUN_ID names, else the one that an interrupted call left, else a new one.

    Args:
        client: client of the server.
        experiment_id: where a new run goes.
        name: name of a new run.
        identity: tags that only this run has; a run with all of them is resumed.
        tags: further tags.
        environment: os.environ by default.

    Raises:
        AvaError: MLFLOW_RUN_ID names a run that the server doesn't have.
    """
    run = given_run(client, environment) or find_run(client, experiment_id, identity)
    if run is None:
        return _create(client, experiment_id, name, {**tags, **identity, OWNED: "true"})
    run.set_tags({**tags, **identity})
    return run


def given_run(client: MlflowClient, environment: Mapping[str, str] | None = None) -> TrackedRun | None:
    """The run that MLFLOW_RUN_ID names: someone else's, which is filled and left open. None if it names none.

    Raises:
        AvaError: the server doesn't have it.
    """
    from mlflow.exceptions import MlflowException

    environment = os.environ if environment is None else environment
    run_id = environment.get(RUN_ID)
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise AvaError(f"{RUN_ID} = {run_id}: the server has no such run: unset it to open a new one") from error
    if run.info.lifecycle_stage == "deleted":
        raise AvaError(f"{RUN_ID} = {run_id}: that run is deleted: unset it to open a new one")
    return _tracked(client, run)


def find_run(client: MlflowClient, experiment_id: str, identity: Mapping[str, str]) -> TrackedRun | None:
    """The oldest run with all these tags."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return _tracked(client, found[0]) if found else None


def load_run(client: MlflowClient, run_id: str) -> TrackedRun | None:
    """The run with this id; None if it is deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return _tracked(client, run) if run.info.lifecycle_stage == "active" else None


def _create(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, Any]) -> TrackedRun:
    """A new run. Its identity is set in the same request, so that a kill leaves no run that can't be found again."""
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags), start_time=int(time.time() * 1000))
    return _tracked(client, run)


def _tracked(client: MlflowClient, run: Run) -> TrackedRun:
    return TrackedRun(
        client=client,
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        started=run.info.start_time,
        ours=OWNED in run.data.tags,
    )
