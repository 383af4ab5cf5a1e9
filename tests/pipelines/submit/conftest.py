"""A Kubeflow Pipelines server in this process, and a submitter in a hurry."""

from pathlib import Path

import kfp
import pytest
from pydantic import BaseModel

from pipelines import command_line
from pipelines.compile import compile_configured
from pipelines.submit import connection, exactly_once, submission, watch
from pipelines.submit.__main__ import main
from tests.pipelines.kfp_api import Description
from tests.pipelines.kfp_server import serving


@pytest.fixture(scope="session")
def description() -> Description:
    return Description()


@pytest.fixture(scope="session")
def remembered():
    """The compiler and the configuration's text, each made once for the same configuration."""

    def remember(function):
        known = {}

        def ask(*arguments):
            key = tuple(each.model_dump_json() if isinstance(each, BaseModel) else str(each) for each in arguments)
            if key not in known:
                known[key] = function(*arguments)
            return known[key]

        return ask

    return remember(compile_configured), remember(command_line.params_yaml)


@pytest.fixture
def server(description):
    with serving(description) as running:
        yield running


@pytest.fixture(autouse=True)
def hurry(monkeypatch, tmp_path, remembered):
    """Pauses of milliseconds, and nothing of this machine's own KFP settings."""
    compiler, params_yaml = remembered
    monkeypatch.setattr(submission, "compile_configured", compiler)
    monkeypatch.setattr(command_line, "params_yaml", params_yaml)
    monkeypatch.setattr(connection, "RETRIES", connection.RETRIES.new(backoff_factor=0.01))
    monkeypatch.setattr(exactly_once, "LOOK_AFTER_SECONDS", (0.0, 0.01, 0.02))
    monkeypatch.setattr(exactly_once, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def params(tmp_path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  steps: 70\n")
    return path


IMAGE = "registry.invalid/ava@sha256:" + "1" * 64


@pytest.fixture
def submit(params):
    """Call the submitter; a server, or an address, and more flags."""

    def call(server_or_host, *extra: str) -> int:
        host = server_or_host if isinstance(server_or_host, str) else server_or_host.address
        given = ["--params", str(params), "--host", host, "--data-uri", "s3://bucket/raw", "--image", IMAGE]
        return main([*given, *extra])

    return call


@pytest.fixture
def tend():
    """Call the submitter with flags that submit nothing."""

    def call(server, *flags: str) -> int:
        return main(["--host", server.address, *flags])

    return call
