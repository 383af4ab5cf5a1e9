"""Addresses of MLflow servers: mistakes are told before any work, with what was meant."""

import pytest

from ava_core.errors import ConfigError
from ava_core.server_address import require_server_address
from ava_core.tracking.address import given_uri
from pipelines import mlflow_server


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:5000",
        "https://me:secret@mlflow.example.org/path",
        "http://[::1]:5000/",
        "sqlite:///x.db",
        "sqlite:////var/lib/x.db",
        "postgresql+psycopg2://me:pw@db:5432/mlflow",
        "mysql+pymysql://db/mlflow",
    ],
)
def test_address_that_mlflow_can_use_is_taken_as_it_is(uri):
    assert require_server_address("X", uri) == uri


WRONG = {
    "localhost:5000": "has no scheme: give http://localhost:5000",
    "mlflow.example.org:80/path": "has no scheme: give http://mlflow.example.org:80/path",
    "htp://localhost:5000": "htp:// is no scheme that Ava can register with",
    "databricks://profile": "databricks:// is no scheme",
    "s3://bucket/mlflow": "s3:// is no scheme",
    "postgresql://": "names no database",
    "postgresql://db:5432/": "names no database",
    "sqlite:///": "names no database",
    "sqlite://x.db": "names no database",
    "http://": "names no server",
    "http://:5000": "names no server",
    "http://localhost:port": "is no address",
    "http://[::1": "is no address",
    "http://localhost:5000/#/experiments/1": "is the address of a page: give http://localhost:5000",
    "https://h/mlflow/#/models/ava-moe": "is the address of a page: give https://h/mlflow",
    "./mlruns": "no longer tracks in plain files",
    "file:///tmp/mlruns": "no longer tracks in plain files",
}


@pytest.mark.parametrize(("uri", "fault"), WRONG.items())
def test_address_that_it_can_not_use_is_refused_alike_by_steps_and_runners(tmp_path, uri, fault):
    variable = {"MLFLOW_TRACKING_URI": uri}
    lines = []
    for ask in (lambda: given_uri(variable), lambda: mlflow_server.ensure(tmp_path, variable)):
        with pytest.raises(ConfigError) as refused:
            ask()
        lines.append(str(refused.value))
    assert lines[0] == lines[1] and lines[0].startswith("MLFLOW_TRACKING_URI = ") and fault in lines[0]


def test_password_in_a_wrong_address_is_not_shown():
    with pytest.raises(ConfigError) as refused:
        require_server_address("X", "http://me:hunter2@h:5000/#/experiments/1")
    assert "hunter2" not in str(refused.value)
