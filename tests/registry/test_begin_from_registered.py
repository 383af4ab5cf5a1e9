"""A registered model as what a training begins from, and what the registry knows of where a model came from."""

import json
import shutil

import pytest

from ava_core.cli.named_inputs import architecture_reader, find_named
from ava_core.config import resolve
from ava_core.errors import AvaError
from ava_core.registry import list_versions
from ava_core.runtime import manifest
from ava_core.steps.table import STEPS
from tests.registry.conftest import call_register, finished, write_inputs

BOUNDS = {"max_bits_per_byte": {"at_most": 2.3}}


@pytest.fixture
def server(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


def test_registered_model_is_fetched_verified_and_counts_by_its_contents(registered, server, tmp_path):
    uri, spec = f"models:/{registered.result.name}@champion", STEPS["train"]
    reader = architecture_reader(spec, tmp_path)
    config = resolve(
        overrides=[f"train.init={uri}", "model.dropout=0.1", "train.sequence_length=64"], inherit=reader
    ).config
    (folder,) = find_named(spec, config, tmp_path)["init"]
    assert manifest.verify(folder, "train").digest == manifest.read(registered.inputs.model).digest
    assert config.model.hidden_size == 32 and config.model.dropout == 0.1


def test_address_without_a_model_is_named(registered, server, tmp_path):
    uri = f"models:/{registered.result.name}@nobody"
    with pytest.raises(AvaError, match=f"{uri}: .* has no such version"):
        architecture_reader(STEPS["train"], tmp_path)(uri)


def test_version_knows_the_model_that_its_training_began_from(registered, server, client, tmp_path):
    parent = manifest.read(registered.inputs.model)
    model = tmp_path / "model"
    shutil.copytree(registered.inputs.model, model)
    (model / "note.txt").write_text("trained further")
    (model / manifest.NAME).unlink()
    finished(model, "train", {"shards": parent.inputs["shards"], "init": parent.digest})
    inputs = write_inputs(tmp_path / "inputs", model, 1.9, None, "begun")
    result = call_register(inputs, tmp_path / "registration", server, "begun-from-another", BOUNDS)
    (version,) = list_versions("begun-from-another", server)
    assert version.parent == parent.digest
    assert json.loads(version.tags["ava.source"])["parent"] == parent.digest
    assert client.get_run(result.run_id).data.tags["ava.parent"] == parent.digest
    assert [found.parent for found in list_versions(registered.result.name, server)] == [""]


def test_version_knows_the_index_that_it_was_evaluated_with(registered, server, tmp_path):
    inputs = write_inputs(tmp_path / "inputs", registered.inputs.model, 1.9, None, "indexed")
    made_from = manifest.read(inputs.evaluation).inputs
    (inputs.evaluation / manifest.NAME).unlink()
    finished(inputs.evaluation, "evaluate", {**made_from, "index": "1" * 64})
    call_register(inputs, tmp_path / "registration", server, "evaluated-with-an-index", BOUNDS)
    (version,) = list_versions("evaluated-with-an-index", server)
    assert version.tags["ava.index"] == "1" * 64
    assert "ava.index" not in list_versions(registered.result.name, server)[0].tags
