"""A real MLflow server on SQLite, one per session: it takes seconds to start."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import mlflow_server as local


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory) -> Path:
    """Where the session's server keeps its database, artifacts and log."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def mlflow_server(mlflow_folder) -> Iterator[str]:
    """Address of the server. Tests keep apart by names of models and experiments of their own."""
    clean = {name: value for name, value in os.environ.items() if name not in local.CLIENT_VARIABLES}
    yield local.ensure(mlflow_folder, clean)
    local.stop(mlflow_folder)
