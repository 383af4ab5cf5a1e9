"""A client for a tracking server that was seen to answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ava_core.errors import AvaError, ConfigError
from ava_core.tracking.address import WEB_SCHEMES, redact, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

PROBE_SECONDS = 8
# MLflow's own defaults are 7 retries with exponential waits and 120 s each: a server that dies in the middle of a
# step would hold it for many minutes. What the user has set stays.
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server and registry at `uri`, once it has answered one request.

    Raises:
        AvaError: nothing answers within `PROBE_SECONDS`, or what answers refuses.
        ConfigError: the address can't be one of a tracking server.
    """
    for name, value in {**BOUNDS, **QUIET}.items():
        os.environ.setdefault(name, value)
    # MLflow would look for git through GitPython and warn when there is none.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow
    from mlflow.exceptions import MlflowException

    file = sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    probing = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS)}
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        with _environment(probing if urlsplit(uri).scheme in WEB_SCHEMES else {}):
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise _unreachable(uri, error) from error
    except Exception as error:  # a store's driver raises what it likes: sqlalchemy, psycopg2, urllib3
        raise AvaError(f"{redact(uri)}: can't be used as tracking server ({type(error).__name__}): check the address") from error
    return client


def _unreachable(uri: str, error: Exception) -> AvaError:
    text = str(error)
    address = redact(uri)
    if "401" in text or "403" in text:
        return AvaError(
            f"{address}: the tracking server refuses us: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,"
            " or the server's --allowed-hosts"
        )
    if "failed with exception" in text or "timed out" in text.lower():
        return AvaError(
            f"{address}: no MLflow server answers: start one (`make mlflow-ui`), or set AVA_TRACKING_URI to one that runs"
        )
    if "UNSUPPORTED" in text.upper() or urlsplit(uri).scheme not in (*WEB_SCHEMES, "sqlite"):
        return ConfigError(f"{address}: no tracking address that MLflow knows: give http://HOST:PORT or sqlite:///FILE")
    return AvaError(f"{address}: what answers is no usable MLflow server: {one_line(text, uri)}")


def one_line(text: str, uri: str = "") -> str:
    """The first line of a message, without the credentials of `uri`."""
    first = text.strip().partition("\n")[0][:300]
    return first.replace(uri, redact(uri)) if uri else first


@contextmanager
def server_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into one line that says what was being done."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise AvaError(f"{redact(uri)}: {doing} failed: {one_line(str(error), uri)}: run the step again") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def experiment(client: Any, uri: str, name: str) -> Experiment:
    """The experiment of that name, made if there is none.

    Raises:
        AvaError: it was deleted, and MLflow keeps the name.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # Without a server MLflow would put artifacts into ./mlruns of whoever runs the step.
        location = None if file is None else Path(file.parent, "artifacts").absolute().as_uri()
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise AvaError(
            f"register.experiment = {name}: is deleted on {redact(uri)}: name another,"
            f" or `mlflow experiments restore -x {found.experiment_id}`"
        )
    return found
