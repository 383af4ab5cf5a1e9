"""The tracking server's address, and the addresses of its pages."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from ava_core.checkout import checkout
from ava_core.errors import ConfigError
from ava_core.server_address import WEB_SCHEMES, require_server_address

log = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///.ava/mlflow/mlflow.db"
LOCAL_SERVER = Path(".ava/mlflow/server.json")
"""Where `python -m pipelines.mlflow_server` notes the address of the server that it started on that database."""
CONNECT_SECONDS = 0.5
PAGES = "?workflowType=machine_learning"
"""Without it, MLflow opens its pages for agents, where a run of ours is an empty list of traces."""
VARIABLES = ("AVA_TRACKING_URI", "MLFLOW_TRACKING_URI")
RUN_ID = "MLFLOW_RUN_ID"
"""Names the run to go on with, which KFP's MLflow plugin or our own recording of a step has opened."""


def tracking_uri(environment: Mapping[str, str] | None = None) -> str:
    """The address that the environment names, else the local server of the current folder, else its SQLite file.

    For a temporary workspace of DVC's, which is deleted with all that lies in it, the checkout is the current folder.

    Raises:
        ConfigError: it is no address that MLflow can use.
    """
    uri = given_uri(os.environ if environment is None else environment) or local_server() or DEFAULT_URI
    file = sqlite_file(uri)
    if file is None or file.is_absolute() or checkout() == Path():
        return uri
    parts = urlsplit(uri)
    # Relative, for a `?` in the checkout's own name would begin a query.
    return f"{parts.scheme}:///{os.path.relpath(checkout() / file)}" + (f"?{parts.query}" if parts.query else "")


def given_uri(environment: Mapping[str, str]) -> str | None:
    """AVA_TRACKING_URI, else MLFLOW_TRACKING_URI; None without either.

    With MLFLOW_RUN_ID the order is reversed: that run is on the server of MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: it is no address that MLflow can use.
    """
    names = reversed(VARIABLES) if environment.get(RUN_ID) else iter(VARIABLES)
    name = next((name for name in names if environment.get(name, "").strip()), None)
    if name is None:
        return None
    return require_server_address(name, environment[name].strip())


def recording_uri(environment: Mapping[str, str]) -> str | None:
    """`given_uri` for what is only recorded: None, and a warning, where it is no address."""
    try:
        return given_uri(environment)
    except ConfigError as error:
        log.warning("mlflow: nothing is recorded: %s", error)
        return None


def local_server(note: Path | None = None) -> str | None:
    """Address of the MLflow server that was started in this checkout; None if nothing listens there any more."""
    try:
        address = json.loads((note or checkout() / LOCAL_SERVER).read_text())["address"]
        parts = urlsplit(address)
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address


def sqlite_file(uri: str) -> Path | None:
    """The database file of a `sqlite:` address, relative paths as they are; None for any other address."""
    parts = urlsplit(uri)
    if parts.scheme.split("+")[0] != "sqlite" or parts.path in ("", "/"):
        return None
    return Path(parts.path[1:])


def comparison_url(uri: str, experiment_id: str, base: str, other: str) -> str | None:
    """Address of the page that holds one evaluation run against another, row by row; None where no server answers."""
    page = _page(uri, "experiments", experiment_id, "evaluation-runs")
    chosen = urlencode({"selectedRunUuid": other, "compareToRunUuid": base})
    return page and f"{page.removesuffix(PAGES)}?{chosen}"


def _page(uri: str, *segments: str) -> str | None:
    parts = urlsplit(uri)
    if parts.scheme not in WEB_SCHEMES:
        return None
    base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    return "/".join((base, "#", *(quote(segment, safe="") for segment in segments))) + PAGES


def run_url(uri: str, experiment_id: str, run_id: str) -> str | None:
    """Address of a run's page; None where no server answers for the store."""
    return _page(uri, "experiments", experiment_id, "runs", run_id)


def model_url(uri: str, name: str, version: int) -> str | None:
    """Address of a model version's page; None where no server answers for the store."""
    return _page(uri, "models", name, "versions", str(version))
