"""Preflight check: faults of the tracking server that a pipeline would otherwise only meet at its end.

Usage: python -m ava_core.tracking.ready --params params.yaml | --experiment NAME --model NAME

The server is the one that the environment names. One that doesn't answer passes, since the steps that need it report
that; one that answers must be MLflow 3 or later, accept our credentials, and let us write runs and versions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ava_core.config import resolve
from ava_core.errors import AvaError, ConfigError
from ava_core.redaction import redact_address
from ava_core.server_address import WEB_SCHEMES
from ava_core.tracking.address import given_uri
from ava_core.tracking.faults import is_silent, unreachable
from ava_core.tracking.rest import Server

PATIENCE = 6.0
"""Time limit of a request in seconds."""
OLDEST = 3
"""Major version of MLflow whose registry has what `ava register` needs: logged models as the source of a version."""


def require_ready(experiment: str, model: str, environment: Mapping[str, str]) -> None:
    """Refuse a server on which steps can't be recorded or the model can't be registered.

    The experiment is made if there is none, and it and the registered model get a tag: only a write shows permission.

    Args:
        experiment: `register.experiment` of the configuration.
        model: `register.model_name`.
        environment: names the server.

    Raises:
        DeletedExperimentError: the experiment is deleted.
        ConfigError: the environment names no address of a server.
        AvaError: the server is too old, refuses us, or fails; or the database can't be opened.
    """
    uri = given_uri(environment)
    if uri is None or urlsplit(uri).scheme.startswith("sqlite"):
        return
    if urlsplit(uri).scheme not in WEB_SCHEMES:  # a database without a server: only MLflow can say
        from ava_core.tracking.connection import connect

        connect(uri)
        return
    server = Server(uri, environment, PATIENCE)
    try:
        require_version(uri, server)
        server.require_writable(experiment, model)
    except AvaError:
        raise
    except Exception as error:  # servers, proxies and plugins raise what they like
        if not is_silent(error):
            raise unreachable(uri, error) from error


def require_version(uri: str, server: Server) -> None:
    """Refuse what is no MLflow server, and one that is too old.

    Raises:
        AvaError: it is one of them.
    """
    version = server.version()
    major = version.partition(".")[0]
    if not major.isdigit():
        raise AvaError(f"{redact_address(uri)}: no MLflow server answers there, but something else: check the address")
    if int(major) < OLDEST:
        raise AvaError(f"{redact_address(uri)}: is MLflow {version}: Ava needs a server of MLflow {OLDEST} or later")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and check; 0, or the exit code of the error that is printed."""
    parser = argparse.ArgumentParser(
        prog="python -m ava_core.tracking.ready", description="Whether a pipeline can be recorded and registered."
    )
    parser.add_argument("--params", type=Path, help="file that names both in register.experiment and .model_name")
    parser.add_argument("--experiment", help="the experiment")
    parser.add_argument("--model", help="the registered model")
    flags = parser.parse_args(arguments)
    if not flags.params and not (flags.experiment and flags.model):
        parser.error("give --params, or --experiment and --model")
    try:
        experiment, model = flags.experiment, flags.model
        if flags.params:
            registry = resolve(params=flags.params).config.registry
            experiment, model = experiment or registry.experiment, model or registry.model_name
        require_ready(experiment, model, os.environ)
    except AvaError as error:
        for line in error.faults if isinstance(error, ConfigError) else (str(error),):
            print(line, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
