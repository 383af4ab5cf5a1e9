"""What others have deleted or moved in the registry since: said before anything is done, made anew, never claimed."""

import json
import logging
import shutil

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.registry import download_model
from ava_core.registry.download import find_version
from tests.registry.test_register import champion, runs, versions


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    caplog.set_level(logging.INFO, "ava_core")
    return caplog


def files_of(mlflow_folder, result):
    (folder,) = mlflow_folder.glob(f"artifacts/*/models/{result.logged_model_id}/artifacts")
    return folder


def delete_logged_model(client, mlflow_folder, result):
    client.delete_logged_model(result.logged_model_id)


def delete_files(client, mlflow_folder, result):
    shutil.rmtree(files_of(mlflow_folder, result))


def delete_weights(client, mlflow_folder, result):
    (files_of(mlflow_folder, result) / "artifacts" / "model" / "model.safetensors").unlink()


def truncate_weights(client, mlflow_folder, result):
    weights = files_of(mlflow_folder, result) / "artifacts" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def forget_pins(client, mlflow_folder, result):
    """As an older `ava register` left it."""
    client.delete_model_version_tag(result.name, str(result.version), "ava.pins")


LOSSES = {
    delete_logged_model: "its logged model was deleted",
    delete_files: r"MLmodel: is missing",
    delete_weights: r"artifacts/model/model.safetensors: is missing",
    truncate_weights: r"artifacts/model/model.safetensors: has [0-9,]+ bytes, not [0-9,]+",
    forget_pins: "the registry knows no digests of its files",
}


@pytest.mark.slow
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_lost_version_is_registered_anew_and_takes_the_alias(
    make_inputs, run_register, client, mlflow_folder, mlflow_server, model_name, tmp_path, said, lose
):
    inputs = make_inputs(2.0)
    lose(client, mlflow_folder, run_register(inputs))
    again = run_register(inputs)
    assert said.text.count("version 1 is this very evaluation, but ") == 1
    assert again.metrics == {"promoted": 1.0, "model_version": 2.0}
    assert (champion(client, model_name), len(runs(client, model_name))) == (2, 1)
    assert download_model(f"models:/{model_name}@champion", mlflow_server, tmp_path / "cache").version == 2
    assert run_register(inputs).record() == again.record()
    assert versions(client, model_name) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("lose", [lose for lose in LOSSES if lose is not forget_pins], ids=lambda lose: lose.__name__)
def test_champion_that_can_not_be_loaded_is_an_error_of_gate_and_register(
    make_inputs, run_register, run_gate, client, mlflow_folder, model_name, lose
):
    lose(client, mlflow_folder, run_register(make_inputs(2.0)))
    better = make_inputs(1.9)
    fault = f"^{model_name} version 1, the champion: {LOSSES[lose]}: restore it, or take the alias champion away"
    with pytest.raises(IntegrityError, match=fault):
        run_gate(better)
    with pytest.raises(IntegrityError, match=fault):
        run_register(better)
    client.delete_registered_model_alias(model_name, "champion")
    assert run_gate(better)[0].passed
    assert run_register(better).metrics["promoted"] == 1.0


def test_champion_of_an_older_register_is_compared_with_by_its_figures(
    make_inputs, run_register, run_gate, client, mlflow_folder, said
):
    forget_pins(client, mlflow_folder, run_register(make_inputs(2.0)))
    decision, _ = run_gate(make_inputs(2.05))
    assert (decision.passed, decision.champion) == (False, 1)
    assert "version 1, the champion: the registry knows no digests of its files: only its figures count" in said.text


@pytest.mark.slow
def test_gate_lets_through_what_register_makes_anew(make_inputs, run_register, run_gate, client, mlflow_folder):
    inputs = make_inputs(2.0)
    delete_files(client, mlflow_folder, run_register(inputs))
    decision, folder = run_gate(inputs)
    assert decision.passed
    assert run_register(inputs, gate=folder).metrics == {"promoted": 1.0, "model_version": 2.0}


@pytest.mark.slow
def test_lost_logged_model_is_not_taken_for_a_new_version(
    make_inputs, run_register, client, mlflow_folder, model_name, mlflow_server, tmp_path
):
    """The version was deleted and the files of its logged model are gone: the logged model alone looks whole."""
    inputs = make_inputs(2.0)
    delete_weights(client, mlflow_folder, run_register(inputs))
    client.delete_registered_model(model_name)
    assert run_register(inputs).metrics["promoted"] == 1.0
    download_model(f"models:/{model_name}@champion", mlflow_server, tmp_path / "cache")


def test_deleted_run_and_lost_registry_are_made_anew(make_inputs, run_register, client, model_name):
    inputs = make_inputs(2.0)
    first = run_register(inputs)
    client.delete_run(first.run_id)
    client.delete_registered_model(model_name)
    again = run_register(inputs)
    assert (again.metrics, champion(client, model_name)) == ({"promoted": 1.0, "model_version": 1.0}, 1)
    assert client.get_run(again.run_id).info.lifecycle_stage == "active"


def test_removed_alias_is_set_again_by_the_same_run(make_inputs, run_register, run_gate, client, model_name):
    inputs = make_inputs(2.0)
    _, folder = run_gate(inputs)
    first = run_register(inputs, gate=folder)
    client.delete_registered_model_alias(model_name, "champion")
    client.delete_registered_model_alias(model_name, "challenger")
    decision, folder = run_gate(inputs)
    again = run_register(inputs, gate=folder)
    assert decision.champion is None
    assert again.record() == first.record()
    assert client.get_registered_model(model_name).aliases == {"challenger": "1", "champion": "1"}


@pytest.mark.slow
def test_removed_challenger_is_set_again_where_a_champion_is_left(make_inputs, run_register, client, model_name):
    run_register(make_inputs(2.0))
    worse = make_inputs(2.2)
    run_register(worse)
    client.delete_registered_model_alias(model_name, "challenger")
    run_register(worse)
    assert client.get_registered_model(model_name).aliases == {"challenger": "2", "champion": "1"}


@pytest.mark.slow
def test_roll_back_by_hand_stays_and_the_same_run_claims_no_promotion(
    make_inputs, run_register, run_gate, client, model_name, said
):
    run_register(make_inputs(2.0))
    inputs = make_inputs(1.9)
    assert run_register(inputs).metrics["promoted"] == 1.0
    client.set_registered_model_alias(model_name, "champion", "1")
    _, folder = run_gate(inputs)
    again = run_register(inputs, gate=folder)
    assert (again.metrics, again.record()["promoted"]) == ({"promoted": 0.0, "model_version": 2.0}, False)
    assert (champion(client, model_name), again.record()["champion"]) == (1, 1)
    assert "version 2 had passed the gate (compared with version 1), but the champion is version 1 by now" in said.text
    assert client.get_run(again.run_id).data.tags["ava.promoted"] == "false"


@pytest.mark.slow
def test_refused_version_is_decided_anew_once_there_is_no_champion(make_inputs, run_register, client, model_name):
    run_register(make_inputs(2.0))
    inputs = make_inputs(2.1)
    assert run_register(inputs).metrics["promoted"] == 0.0
    client.delete_registered_model_alias(model_name, "champion")
    assert run_register(inputs).metrics == {"promoted": 1.0, "model_version": 2.0}


def test_missing_champion_names_the_refusal_the_challenger_and_the_bound(
    make_inputs, run_register, mlflow_server, model_name
):
    run_register(make_inputs(2.4, int8=2.41))
    with pytest.raises(AvaError) as caught:
        find_version(f"models:/{model_name}@champion", mlflow_server)
    assert str(caught.value) == (
        f"models:/{model_name}@champion: {model_name} has no champion: the gate refused version 1:"
        " test_bits_per_byte 2.4000, at most 2.3000 (max_bits_per_byte): fails by 0.1000:"
        f" use models:/{model_name}@challenger, or widen register.gate.max_bits_per_byte and register again"
    )


@pytest.mark.slow
def test_missing_champion_without_a_refusal_is_named_too(make_inputs, run_register, client, mlflow_server, model_name):
    uri = f"models:/{model_name}@champion"
    with pytest.raises(AvaError, match=f"{model_name} has no champion: `make pipeline-local` trains and registers one"):
        find_version(uri, mlflow_server)
    run_register(make_inputs(2.0))
    client.delete_registered_model_alias(model_name, "champion")
    with pytest.raises(AvaError, match=f"though the gate let version 1 through: use models:/{model_name}@challenger"):
        find_version(uri, mlflow_server)


def test_registration_says_what_the_registry_says(make_inputs, run_register, tmp_path):
    run_register(make_inputs(2.0))
    record = json.loads((tmp_path / "registration1" / "registration.json").read_text())
    assert (record["promoted"], record["champion"], record["version"]) == (True, 1, 1)
