"""A registered version runs in an environment of its own requirements alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.config.generation import GenerationConfig
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from tests.registry.conftest import Inputs, call_register, write_evaluation
from tests.serving import linked_environment
from tests.serving.test_pyfunc import _post, _wait_until_up

PROMPTS = ["To be, or", "Ça, <|endoftext|> 愛"]


PREDICT = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
ready = "torch" in sys.modules  # before the first request, which a server answers within a minute or not at all
texts = {weights: model.predict(json.loads(sys.argv[2]), params={"max_new_tokens": 12, "weights": weights})
         for weights in ("int8", "float")}
import ava_core
print(json.dumps({"texts": texts, "code": ava_core.__file__, "ready": ready}))
"""


@pytest.fixture
def uri(tmp_path, tiny_model, int8_model) -> str:
    """The address of a registry with a champion `bare`."""
    address = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    figures = {"test_bits_per_byte": 2.0, "int8_test_bits_per_byte": 2.001, "key_bare": 0.0}
    evaluation = write_evaluation(tmp_path / "evaluation", tiny_model, [int8_model], figures)
    call_register(Inputs(tiny_model, evaluation, [int8_model]), tmp_path / "registration", address, "bare", {})
    return address


@pytest.fixture
def environment(uri) -> dict[str, str]:
    """Variables of a program that knows the registry, and nothing of this process's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AVA", "PYTHON"))}
    return {**kept, "MLFLOW_TRACKING_URI": uri}


def expected(folder: Path) -> list[str]:
    return generate(
        *load_model(folder), PROMPTS, strategy="greedy", settings=GenerationConfig(max_new_tokens=12), seed=0
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_version_predicts_in_an_environment_of_its_own_requirements_alone(
    tmp_path, tiny_model, int8_model, environment
):
    (listed,) = (tmp_path / "store" / "artifacts").rglob("requirements.txt")
    python = linked_environment.create(tmp_path / "environment")
    linked_environment.install(tmp_path / "environment", linked_environment.read(listed))
    absent = subprocess.run([python, "-c", "import omegaconf"], cwd=tmp_path, capture_output=True, check=False)
    assert b"No module named 'omegaconf'" in absent.stderr
    command = [python, "-c", PREDICT, "models:/bare@champion", json.dumps(PROMPTS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["texts"] == {"int8": expected(int8_model), "float": expected(tiny_model)}
    assert f"{os.sep}code{os.sep}ava_core.zip{os.sep}" in result["code"]
    assert result["ready"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_models_serve_makes_an_environment_for_the_version(tmp_path, int8_model, environment):
    """As `--env-manager uv` does it, with a uv that takes packages from this environment and not from an index."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{linked_environment.__file__}" "$@"\n')
    (programs / "uv").chmod(0o755)
    environment |= {"MLFLOW_ENV_ROOT": str(tmp_path / "environments"), "PATH": f"{programs}:{os.defpath}"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/bare@champion", "--env-manager", "uv"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts processes of its own, which end with it
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_up(address, server, 600)
        answer = _post(address, {"inputs": PROMPTS, "params": {"max_new_tokens": 12}})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    assert answer == (200, json.dumps({"predictions": expected(int8_model)})), (tmp_path / "log").read_text()[-3000:]
    (made,) = (tmp_path / "environments").glob("mlflow-*")
    assert (made / "bin" / "uvicorn").is_file() and not list(made.glob("lib/*/site-packages/omegaconf"))
