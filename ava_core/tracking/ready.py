"""What a pipeline would only fail at when all is computed, looked at before anything is.

Usage: python -m ava_core.tracking.ready --params params.yaml | --experiment NAME

The server is the one that the environment names. One that doesn't answer passes: what needs it says so.
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
from ava_core.tracking.address import WEB_SCHEMES, given_uri
from ava_core.tracking.faults import DeletedExperimentError
from ava_core.tracking.rest import Server

PATIENCE = 6.0
"""Seconds that the server may take."""


def require_ready(experiment: str, environment: Mapping[str, str]) -> None:
    """See to it that steps can be recorded and the model can be registered.

    Args:
        experiment: `register.experiment` of the configuration.
        environment: names the server.

    Raises:
        DeletedExperimentError: the experiment is deleted.
        ConfigError: the environment names no address of a server.
    """
    uri = given_uri(environment)
    if uri is None or urlsplit(uri).scheme not in WEB_SCHEMES:
        return
    try:
        Server(uri, environment, PATIENCE).find_experiment(experiment)
    except DeletedExperimentError:
        raise
    except Exception:  # servers, proxies and plugins raise what they like
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and look; 0, or the exit code of the error that is printed."""
    parser = argparse.ArgumentParser(
        prog="python -m ava_core.tracking.ready", description="Whether a pipeline can be recorded and registered."
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--params", type=Path, help="file that names the experiment in register.experiment")
    given.add_argument("--experiment", help="the experiment")
    flags = parser.parse_args(arguments)
    try:
        require_ready(flags.experiment or resolve(params=flags.params).config.registry.experiment, os.environ)
    except AvaError as error:
        for line in error.faults if isinstance(error, ConfigError) else (str(error),):
            print(line, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
