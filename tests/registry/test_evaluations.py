"""The evaluation that a version carries: verified when it is fetched, and compared under the version's address."""

import json

import pytest
from typer.testing import CliRunner

from ava_core.cli import main
from ava_core.errors import AvaError, IntegrityError
from ava_core.evaluation import losses
from ava_core.registry.evaluations import fetch_evaluation, read_parameters
from ava_core.runtime import manifest, pins
from tests.evaluation.comparison.evaluations import sealed, write_comparable


@pytest.fixture
def make_version(make_inputs, run_register, tmp_path):
    """Register a version whose evaluation has losses, of a model that costs `effect` more; with that evaluation."""

    def make(effect: float = 0.0):
        made, comparable = make_inputs(2.0), tmp_path / f"comparable{effect:g}"
        write_comparable(comparable, effect)
        for path in comparable.iterdir():
            path.rename(made.evaluation / path.name)
        sealed(made.evaluation, {"model": manifest.read(made.model).digest})
        return run_register(made), made.evaluation

    return make


@pytest.fixture
def version(make_version):
    """A registered one whose evaluation has losses, and that evaluation's folder."""
    return make_version()


def compare(*arguments):
    return CliRunner().invoke(main.app, ["compare", *map(str, arguments)])


def test_version_carries_the_evaluation_that_it_was_registered_with(version, mlflow_server, tmp_path):
    registered, evaluation = version
    fetched = fetch_evaluation(f"models:/{registered.name}/{registered.version}", mlflow_server, tmp_path)
    assert manifest.verify(fetched, "evaluate") == manifest.read(evaluation)
    assert (fetched / losses.NAME).read_bytes() == (evaluation / losses.NAME).read_bytes()


def test_version_and_folder_stand_side_by_side(version, mlflow_server, monkeypatch):
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    registered, evaluation = version
    address = f"models:/{registered.name}@champion"
    result = compare(address, evaluation, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [side["evaluation"] for side in found["sides"]] == [manifest.read(evaluation).digest] * 2
    assert found["figures"][0]["differences"][0] == {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "equal"}


def test_two_versions_stand_side_by_side_with_the_settings_of_their_runs(
    make_version, client, mlflow_server, monkeypatch
):
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    (first, _), (second, _) = make_version(), make_version(0.01)
    client.log_param(first.run_id, "train.note", "the first")
    base, other = f"models:/{first.name}/{first.version}", f"models:/{first.name}/{second.version}"
    result = compare(base, other)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:2] == [f"A {base}", f"B {other}"]
    assert "worse" in next(line for line in lines if line.startswith("test_bits_per_byte"))
    assert any(line.startswith("train.note the first") for line in lines), result.stdout
    failed = compare(base, other, "--fail-if-worse")
    assert isinstance(failed.exception, AvaError)
    assert str(failed.exception).startswith(f"{other}: is worse than {base}: float test_bits_per_byte +0.01")


def test_version_s_model_is_fetched_and_evaluated_on_the_shards(
    registered, mlflow_server, tiny_model, tiny_shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "threads: 1\nevaluate: {prompts: [To be], generation: {max_new_tokens: 4, num_beams: 2}}\n"
    )
    address = f"models:/{registered.result.name}@champion"
    result = compare(address, tiny_model, "--shards", tiny_shards, "--params", "params.yaml", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["agreement"] == [{"expert_agreement": 1.0, "expert_slot_agreement": 1.0, "top1_agreement": 1.0}]
    assert [row["differences"][0]["value"] for row in found["figures"]] == [0.0] * len(found["figures"])
    assert found["sides"][0]["name"] == address
    assert {"test_bits_per_byte", "test_loss"} <= {row["figure"] for row in found["figures"]}


@pytest.mark.parametrize("arguments", [[], ["--shards", "shards"]])
def test_version_that_there_is_not_is_named_by_the_command(version, mlflow_server, monkeypatch, arguments):
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    registered, evaluation = version
    result = compare(evaluation, f"models:/{registered.name}@nobody", *arguments)
    assert isinstance(result.exception, AvaError)
    assert str(result.exception).startswith(f"models:/{registered.name}@nobody: ")
    assert "\n" not in str(result.exception)


def test_parameters_are_those_of_the_run(version, mlflow_server):
    registered, _ = version
    found = read_parameters(f"models:/{registered.name}@champion", mlflow_server)
    assert found["register.model_name"] == registered.name


def test_losses_that_were_changed_in_the_store_are_refused(version, mlflow_server, mlflow_folder, tmp_path):
    registered, _ = version
    (path,) = mlflow_folder.glob(f"artifacts/*/models/{registered.logged_model_id}/artifacts/**/{losses.NAME}")
    path.write_text(path.read_text().replace('"correct": [', '"correct": [1', 1))
    with pytest.raises(IntegrityError, match=f"{losses.NAME}: its bytes are not those in the manifest"):
        fetch_evaluation(f"models:/{registered.name}@champion", mlflow_server, tmp_path)


def test_version_of_an_older_ava_says_what_to_do(version, client, mlflow_server, tmp_path):
    registered, _ = version
    known = pins.read(client.get_model_version(registered.name, str(registered.version)).tags)
    fewer = {path: digest for path, digest in known.items() if "/evaluation/" not in path}
    client.set_model_version_tag(registered.name, str(registered.version), pins.TAG, json.dumps(fewer))
    with pytest.raises(losses.NoLossesError, match="was registered without its evaluation, by an older Ava: evaluate"):
        fetch_evaluation(f"models:/{registered.name}@champion", mlflow_server, tmp_path)


def test_missing_version_is_named(mlflow_server, model_name, tmp_path):
    with pytest.raises(AvaError, match="has no such version"):
        fetch_evaluation(f"models:/{model_name}/7", mlflow_server, tmp_path)
