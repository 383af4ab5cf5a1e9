"""MLflow: reachable, new enough, writable; and this machine's clock against its server's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from ava_core.diagnosis.checkout import read_settings
from ava_core.diagnosis.finding import Finding, fail, failed, ok, warn
from ava_core.diagnosis.storage import check_disk
from ava_core.errors import AvaError, ConfigError
from ava_core.redaction import redact_address
from ava_core.server_address import WEB_SCHEMES
from ava_core.tracking.address import sqlite_file, tracking_uri
from ava_core.tracking.faults import unreachable
from ava_core.tracking.ready import require_version
from ava_core.tracking.rest import Server

SECONDS = 1.5
"""For each answer of the server."""
APART = 60.0
"""Seconds that clocks may differ: signatures of object stores and tokens of clusters bear a few minutes."""


def check_tracking(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The tracking server of this folder and environment, as the steps find it."""
    try:
        uri = tracking_uri(environment)
    except ConfigError as error:
        yield failed("mlflow", error)
        return
    if (database := sqlite_file(uri)) is not None:
        yield from _check_database(uri, database)
        yield _clock("")
    elif urlsplit(uri).scheme not in WEB_SCHEMES:
        way = "ask it with `python -m ava_core.tracking.ready --params params.yaml`"
        yield warn("mlflow", f"{redact_address(uri)}: a database without a server", way)
        yield _clock("")
    else:
        yield from _check_server(uri, folder, environment)


def _check_database(uri: str, database: Path) -> Iterator[Finding]:
    for found in check_disk("mlflow", database.parent):
        if found.status == "fail":
            yield found
            return
    state = "" if database.is_file() else ", made by the first run"
    yield ok("mlflow", f"no server; {redact_address(uri)}{state}; `make mlflow-ui` starts one")


def _check_server(uri: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """A tag on the experiment and on the model is set, as before each run: only a write shows permission."""
    server = Server(uri, environment, SECONDS)
    try:
        registry = read_settings(folder).registry
    except AvaError:  # told by another check
        from ava_core.config.register import RegisterConfig

        registry = RegisterConfig()
    try:
        require_version(uri, server)
        version = server.version()
        server.require_writable(registry.experiment, registry.model_name)
    except AvaError as error:
        yield failed("mlflow", error)
    except Exception as error:  # servers, proxies and plugins raise what they like
        yield failed("mlflow", unreachable(uri, error))
    else:
        yield ok("mlflow", f"{version} at {redact_address(uri)}, writable")
    yield _clock(server.dated)


def _clock(dated: str) -> Finding:
    return compare_clock(dated, time.time())


def compare_clock(dated: str, now: float) -> Finding:
    """This machine's clock against a server's.

    Args:
        dated: Date header of the server's answer; empty without one.
        now: seconds since 1970 here.
    """
    here = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if not dated:
        return ok("clock", f"{here}; no server to compare it with")
    try:
        apart = now - parsedate_to_datetime(dated).timestamp()
    except ValueError:
        return ok("clock", f"{here}; the server's date can't be read")
    if abs(apart) > APART:
        word = "ahead of" if apart > 0 else "behind"
        return fail("clock", f"{here}: {abs(apart):.0f} s {word} the MLflow server's", "set one of them: timedatectl")
    return ok("clock", f"{here}, as the MLflow server's")
