"""The registered model at work, directly and through MLflow in a fresh process."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from ava_core.config.schema import GenerationConfig
from ava_core.errors import AvaError, IntegrityError
from ava_core.serving.pyfunc import TextModel, read_prompts, signature
from tests.registry.conftest import call_register, write_inputs

FRESH = """
import json, sys
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


def test_champion_continues_prompts_in_a_fresh_process_with_the_code_it_was_registered_with(
    tmp_path, tiny_model, mlflow_server
):
    inputs = write_inputs(tmp_path / "outputs", tiny_model, 2.0, None, "fresh")
    call_register(inputs, tmp_path / "registration", mlflow_server, "fresh-process", {})
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AVA"))}
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, "models:/fresh-process@champion"],
        cwd=tmp_path,
        env={**environment, "MLFLOW_TRACKING_URI": mlflow_server},
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
    assert os.sep + "code" + os.sep in result["code"]


def test_unknown_strategy_range_and_weights_are_refused(model):
    with pytest.raises(AvaError, match=r"params.strategy = best: must be one of greedy, beam, nucleus"):
        model.predict(None, ["a"], {"strategy": "best"})
    with pytest.raises(AvaError, match=r"params.top_p = 3.0: input should be less than or equal to 1"):
        model.predict(None, ["a"], {"top_p": 3.0})
    with pytest.raises(AvaError, match=r"params.weights = int8: this version holds float"):
        model.predict(None, ["a"], {"weights": "int8"})


def test_changed_byte_of_the_weights_is_refused_before_they_are_loaded(tiny_model, tmp_path):
    import shutil

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
