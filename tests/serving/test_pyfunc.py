"""The registered model at work, directly and through MLflow in a fresh process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError, IntegrityError
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.serving.pyfunc import TextModel, read_prompts, signature
from tests.registry.conftest import Inputs, call_register, write_evaluation, write_inputs

ROOT = Path(__file__).parents[2]
FRESH = """
import json, sys
import ava_core.auto_classes  # as ava_moe.pth does
import mlflow
import pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
options = {"strategy": "nucleus", "max_new_tokens": 5, "seed": 7}
texts = [
    model.predict(["To be, or"]),
    model.predict(pandas.DataFrame({"prompt": ["To be, or", "O, she doth"]}), params=options),
    model.predict(["To be, or", "O, she doth"], params=options),
]
import ava_core
print(json.dumps({"texts": texts, "code": ava_core.__file__}))
"""


@pytest.fixture
def model(tiny_model) -> TextModel:
    loaded = TextModel()
    loaded.load_context(SimpleNamespace(artifacts={"model": str(tiny_model)}))
    return loaded


ONCE = """
import sys
import mlflow
from mlflow.store.artifact import artifact_repository_registry, models_artifact_repo
import ava_mlflow
repositories = {"with": ava_mlflow.VerifiedModels, "without": models_artifact_repo.ModelsArtifactRepository}
artifact_repository_registry._artifact_repository_registry.register("models", repositories[sys.argv[2]])
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(["To be"], params={"max_new_tokens": 2}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_store_that_mlflow_reads_in_place_is_loaded_again_and_again(tmp_path, tiny_model):
    """Without Ava, MLflow's note and Python's compiled script stay in the store."""
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    inputs = write_inputs(tmp_path / "outputs", tiny_model, 2.0, None, "in-place")
    result = call_register(inputs, tmp_path / "registration", uri, "in-place", {})
    hidden = ("MLFLOW", "AVA", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    for ava in ("without", "without", "with"):
        command = [sys.executable, "-c", ONCE, "models:/in-place@champion", ava]
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0 and "To be" in answer.stdout, answer.stderr[-2000:]
    (store,) = tmp_path.glob(f"store/artifacts/models/{result.logged_model_id}/artifacts")
    assert (store / "__pycache__").is_dir() and (store / "registered_model_meta").is_file()
    again = call_register(inputs, tmp_path / "registration-2", uri, "in-place", {})
    assert again.metrics == {"promoted": 1.0, "model_version": 1.0}


@pytest.mark.slow
def test_champion_continues_prompts_in_a_fresh_process_with_the_code_it_was_registered_with(
    tmp_path, tiny_model, mlflow_server
):
    inputs = write_inputs(tmp_path / "outputs", tiny_model, 2.0, None, "fresh")
    call_register(inputs, tmp_path / "registration", mlflow_server, "fresh-process", {})
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AVA"))}
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, "models:/fresh-process@champion"],
        cwd=tmp_path,
        env={**environment, "MLFLOW_TRACKING_URI": mlflow_server, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    result = json.loads(answer.stdout.splitlines()[-1])
    greedy, sampled, again = result["texts"]
    assert len(greedy) == 1 and greedy[0].startswith("To be, or") and len(greedy[0]) > len("To be, or")
    assert [text.startswith(prompt) for text, prompt in zip(sampled, ["To be, or", "O, she"], strict=True)] == [
        True
    ] * 2
    assert sampled == again
    assert f"{os.sep}code{os.sep}ava_core.zip{os.sep}" in result["code"]


def _post(address: str, body: dict) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _wait_until_up(address: str, server: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server didn't answer in time")


@pytest.mark.slow
def test_mlflow_models_serve_gives_the_words_of_the_quantised_model(tmp_path, tiny_model, int8_model, mlflow_server):
    figures = {"test_bits_per_byte": 2.0, "int8_test_bits_per_byte": 2.001, "key_serve": 0.0}
    evaluation = write_evaluation(tmp_path / "evaluation", tiny_model, [int8_model], figures)
    inputs = Inputs(tiny_model, evaluation, [int8_model])
    call_register(inputs, tmp_path / "registration", mlflow_server, "models-serve", {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/models-serve@champion"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AVA"))}
    environment |= {"MLFLOW_TRACKING_URI": mlflow_server, "PATH": f"{os.path.dirname(sys.executable)}:{os.defpath}"}
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,  # it starts processes of its own, which end with it
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_up(address, server)
        prompts = ["To be, or", "O, she doth"]
        options = {"strategy": "nucleus", "max_new_tokens": 20, "seed": 7, "top_k": 40, "min_p": 0.01}
        sampled = _post(address, {"inputs": prompts, "params": options})
        [whole] = json.loads(_post(address, {"inputs": prompts[:1], "params": options})[1])["predictions"]
        stop = whole[-3:]
        stopped = _post(address, {"inputs": prompts[:1], "params": {**options, "stop": [stop]}})
        refused = _post(address, {"inputs": prompts, "params": {"top_k": -1}})
        after = _post(address, {"inputs": prompts, "params": options})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    settings = GenerationConfig(max_new_tokens=20, top_k=40, min_p=0.01)
    expected = generate(*load_model(int8_model), prompts, strategy="nucleus", settings=settings, seed=7)
    assert sampled == after == (200, json.dumps({"predictions": expected}))
    assert stopped[0] == 200
    assert json.loads(stopped[1])["predictions"] == [whole[: whole.index(stop, len(prompts[0]))]]
    assert refused[0] >= 400
    assert "params.top_k = -1: input should be greater than or equal to 0" in refused[1]


def test_quantised_weights_are_the_default_and_float_ones_are_asked_for(tiny_model, int8_model):
    both = TextModel()
    both.load_context(SimpleNamespace(artifacts={"model": str(tiny_model), "int8": str(int8_model)}))
    options = {"max_new_tokens": 2}
    both.predict(None, ["O"], options)
    assert set(both._loaded) == {"int8"}
    assert both.predict(None, ["O"], {**options, "weights": "int8"}) == both.predict(None, ["O"], options)
    both.predict(None, ["O"], {**options, "weights": "float"})
    assert set(both._loaded) == {"int8", "float"}


def test_unknown_strategy_range_and_weights_are_refused(model):
    with pytest.raises(AvaError, match=r"params.strategy = best: must be one of greedy, beam, contrastive"):
        model.predict(None, ["a"], {"strategy": "best"})
    with pytest.raises(AvaError, match=r"params.top_p = 3.0: input should be less than or equal to 1"):
        model.predict(None, ["a"], {"top_p": 3.0})
    with pytest.raises(AvaError, match=r"params.top_k = -1: input should be greater than or equal to 0"):
        model.predict(None, ["a"], {"top_k": -1})
    with pytest.raises(AvaError, match=r"params.weights = int8: this version holds float"):
        model.predict(None, ["a"], {"weights": "int8"})


def test_changed_byte_of_the_weights_is_refused_before_they_are_loaded(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    spoilt = TextModel()
    spoilt.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    with pytest.raises(IntegrityError, match=r"model.safetensors: its bytes are not those"):
        spoilt.predict(None, ["a"], {})


def test_no_prompts_give_no_texts(model):
    assert model.predict(None, [], {"max_new_tokens": 2}) == []


@pytest.mark.parametrize(
    "given",
    [
        ["a", "b"],
        pd.DataFrame({"prompt": ["a", "b"]}),
        pd.DataFrame({"x": [1, 2], "prompt": ["a", "b"]}),
        pd.DataFrame(["a", "b"]),
    ],
    ids=["list", "column", "more_columns", "unnamed"],
)
def test_prompts_are_read_from_lists_and_frames(given):
    assert read_prompts(given) == ["a", "b"]


def test_what_holds_no_prompts_is_refused():
    with pytest.raises(AvaError, match="input columns text: must be one column `prompt`"):
        read_prompts(pd.DataFrame({"text": ["a"]}))
    with pytest.raises(AvaError, match="prompt 3: must be a string"):
        read_prompts([3])


def test_defaults_of_the_signature_are_the_configured_ones():
    parameters = {item.name: item.default for item in signature(GenerationConfig(max_new_tokens=9, top_p=0.5)).params}
    assert (parameters["max_new_tokens"], parameters["top_p"], parameters["strategy"]) == (9, 0.5, "greedy")
    assert set(GenerationConfig.model_fields) | {"strategy", "seed", "weights"} == set(parameters)
