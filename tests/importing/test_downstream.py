"""What an imported model is to the steps: quantised, evaluated, gated, registered, generated from and served."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from ava_core.config.evaluate import EvaluateConfig
from ava_core.config.generation import GenerationConfig
from ava_core.config.quantize import QuantizeConfig
from ava_core.config.register import RegisterConfig
from ava_core.config.schema import AvaConfig
from ava_core.evaluation.evaluate import evaluate
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.models.conversion import Upcycling
from ava_core.onnx.session import DecoderSession
from ava_core.origin import read_origin
from ava_core.progress import Progress
from ava_core.quantization.quantize import quantize
from ava_core.registry import list_versions
from ava_core.registry.gate import gate
from ava_core.registry.register import register
from ava_core.runtime import manifest
from tests.conftest import TINY_PARAMS
from tests.importing.conftest import finish, write_source
from tests.registry.conftest import finished

LOOSE = {"min_expert_agreement": 0.2, "min_top1_agreement": 0.2, "max_increase_percent": 90.0}


@pytest.fixture(scope="module", params=["qwen3_moe", "llama"])
def chain(request, tmp_path_factory, tiny_shards):
    """A mixture, or a dense model that was upcycled, through import, quantisation and evaluation."""
    root = tmp_path_factory.mktemp("chain")
    source = write_source(root / request.param, request.param, tiny_shards / "tokenizer")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (source / "LICENSE").write_text("Apache License\n")
    upcycling = Upcycling(experts=4, experts_per_token=2) if request.param == "llama" else None
    model = finish(source, root / "model", upcycling=upcycling)
    common = {"model": model, "shards": tiny_shards, "threads": 1, "progress": Progress(quiet=True)}
    folders = {name: root / name for name in ("int8", "evaluation")}
    for name, folder in folders.items():
        folder.mkdir()
        (root / f"{name}-state").mkdir()
    config = QuantizeConfig(parity_sequences=2, int8=LOOSE)
    figures = quantize(
        config=config, scheme="int8", output=folders["int8"], state=root / "int8-state", **common
    ).metrics
    digests = {"model": manifest.read(model).digest}
    (folders["int8"] / "metrics.json").write_text(json.dumps(figures))
    finished(folders["int8"], "quantize", digests, {"scheme": "int8"})
    scored = evaluate(
        config=EvaluateConfig(prompts=["To be"], generation={"max_new_tokens": 4, "num_beams": 2}),
        seed=1,
        quantized=[folders["int8"]],
        output=folders["evaluation"],
        state=root / "evaluation-state",
        **common,
    ).metrics
    (folders["evaluation"] / "metrics.json").write_text(json.dumps(scored))
    digests["quantized.0"] = manifest.read(folders["int8"]).digest
    finished(folders["evaluation"], "evaluate", digests)
    return SimpleNamespace(root=root, model=model, source=request.param, scored=scored, **folders)


def test_evaluation_scores_both_and_says_where_the_model_comes_from(chain):
    assert chain.scored["int8_test_bits_per_byte"] == pytest.approx(chain.scored["test_bits_per_byte"], rel=0.1)
    report = (chain.evaluation / "report.html").read_text()
    assert f"from {chain.source} ({chain.source}), licence apache-2.0." in report
    assert "documents (" not in report.split("Scored on")[0], "nothing is known of what it was trained on"


@pytest.mark.slow
def test_a_training_goes_on_from_it(chain, tiny_shards, tmp_path):
    fields = {name: section for name, section in TINY_PARAMS.items() if name != "model"}
    fields["train"] = {**fields["train"], "init": str(chain.model), "steps": 2}
    params, output = tmp_path / "params.yaml", tmp_path / "continued"
    params.write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "ava_core.cli.main", "train", "--params", params, "--shards", tiny_shards]
    run = subprocess.run([*command, "--output", output, "--quiet"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert manifest.read(output).inputs["init"] == manifest.read(chain.model).digest
    assert read_origin(output).licence == read_origin(chain.model).licence


def test_quantised_model_carries_the_origin_and_the_text_of_the_licence(chain):
    assert read_origin(chain.int8) == read_origin(chain.model)
    assert (chain.int8 / "LICENSE").read_text() == "Apache License\n"


def test_both_generate_and_the_quantised_one_is_served(chain):
    for folder in (chain.model, chain.int8):
        model, tokenizer = load_model(folder)
        settings = GenerationConfig(max_new_tokens=4, num_beams=2)
        (text,) = generate(model, tokenizer, ["To be"], strategy="greedy", settings=settings, seed=0)
        assert text.startswith("To be")
    assert DecoderSession.load(chain.int8, 1).shape.max_position_embeddings == 128


def test_it_is_gated_and_registered_with_its_origin_and_licence(chain, mlflow_server, tmp_path):
    config = RegisterConfig(model_name=f"imported-{chain.source}", gate={})
    common = {
        "config": config,
        "model": chain.model,
        "quantized": [chain.int8],
        "evaluation": chain.evaluation,
        "digests": {},
        "tracking_uri": mlflow_server,
        "progress": Progress(quiet=True),
    }
    for name in ("gate", "registration"):
        (tmp_path / name).mkdir()
    gate(output=tmp_path / "gate", **common)
    register(
        resolved_config=AvaConfig().model_dump(mode="json", by_alias=True),
        gate=tmp_path / "gate",
        output=tmp_path / "registration",
        git_commit=None,
        **common,
    )
    (version,) = list_versions(config.model_name, mlflow_server)
    assert (version.tags["ava.origin"], version.tags["ava.licence"]) == (chain.source, "apache-2.0")
    from mlflow import MlflowClient

    run = MlflowClient(mlflow_server).get_run(version.run_id)
    assert f"from {chain.source}" in run.data.tags["mlflow.note.content"]
    assert not [name for name in run.data.params if name.startswith(("model.", "train."))], "it wasn't trained by them"
