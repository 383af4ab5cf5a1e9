"""The tags of a run's user and program, which MLflow's pages show."""

from __future__ import annotations

import getpass
import os


def authorship(source: str) -> dict[str, str]:
    """The tags of MLflow's columns Source and Created by.

    Args:
        source: the program, such as `ava train`.
    """
    return {"mlflow.source.name": source, "mlflow.source.type": "LOCAL", "mlflow.user": user()}


def user() -> str:
    """The account's name; its number where it has none, as in a container that runs under the caller's id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
