"""A client of MLflow's for a tracking server, after a probe request."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ava_core.server_address import WEB_SCHEMES
from ava_core.tracking.address import sqlite_file
from ava_core.tracking.faults import DeletedExperimentError, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

PROBE_SECONDS = 8
# MLflow's own defaults are 7 retries with exponential waits and 120 s each: a server that dies in the middle of a
# step would hold it for many minutes. What the user has set stays.
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
# Artifacts go through the server. From S3 on, MLflow's client would fetch them from the object store itself, at an
# address which is often one of the server's network alone, and try for minutes before it gives up.
PROXIED = {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false"}
# No bars and addresses between our own lines, no usage statistics sent, no look for a uv project in the current folder,
# no warning when there is no git.
QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server and registry at `uri`; one probe request must be answered first.

    Raises:
        AvaError: nothing answers within `PROBE_SECONDS`, or what answers refuses.
        ConfigError: the address can't be one of a tracking server.
    """
    for name, value in {**BOUNDS, **PROXIED, **QUIET}.items():
        os.environ.setdefault(name, value)
    import mlflow

    file = sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    probing = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS)}
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        with variables_set(probing if urlsplit(uri).scheme in WEB_SCHEMES else {}):
            client.search_experiments(max_results=1)
    except Exception as error:  # a store's driver raises what it likes: mlflow, sqlalchemy, psycopg2, urllib3
        raise unreachable(uri, error) from error
    return client


@contextmanager
def variables_set(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block; afterwards all are as they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def experiment(client: Any, uri: str, name: str) -> Experiment:
    """The experiment of that name, made if there is none.

    Raises:
        DeletedExperimentError: it was deleted, and MLflow keeps the name.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # Without a server MLflow would put artifacts into ./mlruns of whoever runs the step. No `..` in it: in a
        # workspace of DVC's it would lead through a folder that is deleted.
        location = None if file is None else Path(file.parent, "artifacts").resolve().as_uri()
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise DeletedExperimentError(uri, name, found.experiment_id)
    return found
