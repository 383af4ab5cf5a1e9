"""What `ava register` writes into a real MLflow server, whom it promotes, and what it refuses."""

import json
import logging

import pytest
import yaml

from ava_core.errors import AvaError
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from tests.evaluation.comparison.evaluations import figures_of, losses_text, sealed
from tests.registry.conftest import finished, write_evaluation


def champion(client, name):
    return int(client.get_model_version_by_alias(name, "champion").version)


def versions(client, name):
    return sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))


def runs(client, experiment):
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_first_version_below_the_absolute_bound_becomes_champion(registered, client, mlflow_server):
    name = registered.result.name
    assert registered.result.metrics == {"promoted": 1.0, "model_version": 1.0}
    assert champion(client, name) == 1
    assert [path.name for path in registered.output.iterdir()] == ["registration.json"]
    record = json.loads((registered.output / "registration.json").read_text())
    assert record["aliases"] == ["challenger", "champion"]
    assert record["promoted"] is True
    assert record["decision"][0] == {
        "bound": "max_bits_per_byte",
        "figure": "test_bits_per_byte",
        "value": 2.0,
        "limit": 2.3,
        "passed": True,
    }
    assert record["run_url"].startswith(f"{mlflow_server}/#/experiments/{record['experiment_id']}/runs/")
    assert record["model_url"] == f"{mlflow_server}/#/models/{name}/versions/1?workflowType=machine_learning"


def test_run_holds_the_whole_configuration_and_what_it_was_made_from(registered, client, tmp_path):
    run = client.get_run(registered.result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["register.model_name"] == registered.result.name
    with open(client.download_artifacts(registered.result.run_id, "params.yaml", str(tmp_path))) as file:
        assert yaml.safe_load(file)["train"]["steps"] == int(run.data.params["train.steps"])
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert len(run.data.tags["ava.config"]) == 64
    assert run.data.tags["mlflow.user"] and run.data.tags["mlflow.source.type"] == "LOCAL"
    (data,) = run.inputs.dataset_inputs
    manifest = json.loads((registered.inputs.model / "manifest.json").read_text())
    assert data.dataset.digest == manifest["inputs"]["shards"][:36]
    assert data.dataset.name == "shakespeare"
    assert json.loads(data.dataset.profile)["test_bytes"] > 0


def test_run_holds_final_figures_and_series(registered, client):
    run_id = registered.result.run_id
    metrics = client.get_run(run_id).data.metrics
    assert (metrics["test_bits_per_byte"], metrics["int8_compression_ratio"]) == (2.0, 3.5)
    lines = (registered.inputs.model / "history.jsonl").read_text().splitlines()
    series = client.get_metric_history(run_id, "train_loss")
    expected = {row["step"]: row["train_loss"] for row in map(json.loads, lines)}
    assert {point.step: point.value for point in series} == expected
    shown = {metric.key: metric.value for metric in client.get_logged_model(registered.result.logged_model_id).metrics}
    assert shown["test_bits_per_byte"] == 2.0


def test_run_holds_report_samples_and_manifests(registered, client):
    run_id = registered.result.run_id
    top = {file.path for file in client.list_artifacts(run_id)}
    assert {"report.html", "evaluation.json", "samples.txt", "params.yaml", "manifests"} <= top
    manifests = {file.path for file in client.list_artifacts(run_id, "manifests")}
    assert manifests == {f"manifests/{name}.json" for name in ("model", "evaluation", "int8")}


def test_registered_model_holds_no_pickle(registered, tmp_path, mlflow_server):
    import mlflow

    # By its address: whatever ran before in this process may have left another one set.
    model = f"models:/{registered.result.logged_model_id}"
    mlflow.artifacts.download_artifacts(model, dst_path=str(tmp_path / "all"), tracking_uri=mlflow_server)
    names = {path.name for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokenizer.json", "model.onnx", "model_from_code.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".bin", ".pyc"))]


@pytest.mark.slow
def test_version_worse_than_the_champion_beyond_the_tolerance_is_refused_with_the_excess(
    make_inputs, run_register, client, model_name, caplog, monkeypatch
):
    run_register(make_inputs(2.0))
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    with caplog.at_level(logging.INFO, "ava_core"):
        result = run_register(make_inputs(2.05))
    assert result.metrics == {"promoted": 0.0, "model_version": 2.0}
    assert result.aliases == ("challenger",)
    assert champion(client, model_name) == 1
    assert "test_bits_per_byte 2.0500, at most 2.0100 (tolerance_bits_per_byte): fails by 0.0400" in caplog.text
    tags = client.get_model_version(model_name, "2").tags
    assert (tags["ava.promoted"], json.loads(tags["ava.gate"])["previous_champion"]) == ("false", 1)


@pytest.mark.slow
def test_version_within_the_tolerance_replaces_the_champion_and_leaves_a_trail(
    make_inputs, run_register, client, model_name
):
    run_register(make_inputs(2.0))
    result = run_register(make_inputs(2.01))
    assert result.metrics["promoted"] == 1.0
    assert champion(client, model_name) == 2
    tags = client.get_model_version(model_name, "2").tags
    trail = json.loads(tags["ava.gate"])
    assert (tags["ava.promoted"], trail["previous_champion"]) == ("true", 1)
    assert trail["bounds"][0]["limit"] == pytest.approx(2.01)


def test_quantised_model_that_loses_too_much_keeps_its_version_from_promotion(make_inputs, run_register, client):
    result = run_register(make_inputs(2.0, int8=2.03))
    assert result.metrics["promoted"] == 0.0
    assert [(bound.bound, bound.passed) for bound in result.outcome.bounds] == [
        ("max_bits_per_byte", True),
        ("max_quantized_increase", False),
    ]
    assert client.get_registered_model(result.name).aliases == {"challenger": "1"}


def test_first_version_above_the_absolute_bound_leaves_no_champion(make_inputs, run_register, client):
    result = run_register(make_inputs(2.4))
    assert result.metrics["promoted"] == 0.0
    assert client.get_registered_model(result.name).aliases == {"challenger": "1"}


def test_same_evaluation_again_makes_no_second_version_and_no_second_run(
    make_inputs, run_register, client, model_name, tmp_path
):
    inputs = make_inputs(2.0)
    first, second = run_register(inputs), run_register(inputs)
    assert versions(client, model_name) == [1]
    assert len(runs(client, model_name)) == 1
    assert first.record() == second.record()
    assert digest_tree(tmp_path / "registration1") == digest_tree(tmp_path / "registration2")


@pytest.mark.slow
def test_same_evaluation_again_does_not_undo_a_later_promotion(make_inputs, run_register, client, model_name):
    old = make_inputs(2.0)
    run_register(old)
    run_register(make_inputs(1.995))
    again = run_register(old)
    assert champion(client, model_name) == 2
    assert client.get_registered_model(model_name).aliases["challenger"] == "2"
    assert again.aliases == ()


def test_wider_gate_lets_a_refused_version_through_without_a_new_one(make_inputs, run_register, client, model_name):
    inputs = make_inputs(2.4)
    assert run_register(inputs).metrics["promoted"] == 0.0
    assert run_register(inputs, bounds={"max_bits_per_byte": {"at_most": 2.5}}).metrics == {
        "promoted": 1.0,
        "model_version": 1.0,
    }
    assert (versions(client, model_name), champion(client, model_name)) == ([1], 1)


def test_narrower_gate_does_not_take_the_alias_from_the_champion_and_says_so(
    make_inputs, run_register, client, model_name, caplog, monkeypatch
):
    inputs = make_inputs(2.0)
    run_register(inputs)
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    assert run_register(inputs, bounds={"max_bits_per_byte": {"at_most": 1.9}}).metrics["promoted"] == 0.0
    assert champion(client, model_name) == 1
    assert "version 1 is champion by an earlier decision at other bounds, and stays it" in caplog.text


def test_given_run_is_filled_and_left_open(make_inputs, run_register, client, model_name, monkeypatch):
    experiment = client.create_experiment(model_name)
    given = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    result = run_register(make_inputs(2.0))
    assert result.run_id == given.info.run_id
    assert [run.info.run_id for run in runs(client, model_name)] == [given.info.run_id]
    run = client.get_run(given.info.run_id)
    assert (run.info.status, run.data.metrics["test_bits_per_byte"]) == ("RUNNING", 2.0)


def test_given_run_that_does_not_exist_is_refused(make_inputs, run_register, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(AvaError, match=r"MLFLOW_RUN_ID = f+: the server has no such run"):
        run_register(make_inputs(2.0))


def test_deleted_experiment_is_refused_with_the_way_to_restore_it(make_inputs, run_register, client, model_name):
    client.delete_experiment(client.create_experiment(model_name))
    with pytest.raises(AvaError, match=f"register.experiment = {model_name}: is deleted .*mlflow experiments restore"):
        run_register(make_inputs(2.0))


def test_evaluation_of_another_model_is_refused_before_the_server_is_asked(make_inputs, run_register, copy_of):
    inputs = make_inputs(2.0)
    inputs.model = copy_of(inputs.model)
    (inputs.model / "loss.png").write_bytes(b"another")
    finished(inputs.model, "train", {"shards": "0"})
    with pytest.raises(AvaError, match="evaluation: measured another model: run `ava evaluate`"):
        run_register(inputs, uri="http://127.0.0.1:9")


def test_quantised_model_that_was_not_evaluated_is_refused(make_inputs, run_register):
    inputs = make_inputs(2.0)
    inputs.quantized = make_inputs(2.0, int8=2.0).quantized
    with pytest.raises(AvaError, match="has not measured this int8 model"):
        run_register(inputs, uri="http://127.0.0.1:9")


@pytest.mark.slow
def test_sqlite_file_serves_where_there_is_no_server(make_inputs, run_register, tmp_path, model_name):
    from ava_core.registry import download_model, list_versions

    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    result = run_register(make_inputs(2.0), uri=uri)
    assert (result.metrics["promoted"], result.record()["model_url"]) == (1.0, None)
    assert [version.aliases for version in list_versions(model_name, uri)] == [("challenger", "champion")]
    assert (download_model(f"models:/{model_name}@champion", uri, tmp_path / "cache").folder / "config.json").is_file()


@pytest.mark.slow
def test_champion_measured_on_another_text_is_pointed_out(
    make_inputs, run_register, copy_of, caplog, monkeypatch, tmp_path
):
    run_register(make_inputs(2.0))
    inputs = make_inputs(2.0)
    inputs.model = copy_of(inputs.model)
    record = json.loads((inputs.model / "training.json").read_text())
    record["corpus"]["test_bytes"] = 5
    (inputs.model / "training.json").write_text(json.dumps(record))
    finished(inputs.model, "train", {"shards": "0" * 64})
    inputs.evaluation = write_evaluation(tmp_path / "other", inputs.model, [], {"test_bits_per_byte": 2.0, "k": 2.0})
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    run_register(inputs)
    assert "version 1, was measured on another test text" in caplog.text


@pytest.mark.slow
def test_mlflow_finds_the_tables_of_a_run_and_the_data_set_of_the_models_figures(make_inputs, run_register, client):
    made = make_inputs(2.0)
    (made.evaluation / "losses.jsonl").write_text(losses_text(0.0, count=3))
    sealed(made.evaluation, {"model": manifest.read(made.model).digest})
    result = run_register(made)
    tags = client.get_run(result.run_id).data.tags
    assert [item["path"] for item in json.loads(tags["mlflow.loggedArtifacts"])] == [
        "losses_by_document.json",
        "samples_by_prompt.json",
    ]
    table = client.load_table(result.experiment_id, "losses_by_document.json", run_ids=[result.run_id])
    assert table["document"].tolist() == ["text-0", "text-1", "text-2"]
    assert (table["float bits per byte"] * table["bytes"]).sum() / table["bytes"].sum() == pytest.approx(
        figures_of(losses_text(0.0, count=3))["float"]["test_bits_per_byte"]
    )
    samples = client.load_table(result.experiment_id, "samples_by_prompt.json", run_ids=[result.run_id])
    assert samples["continuation"].tolist() == [" not"]
    (dataset,) = [item.dataset for item in client.get_run(result.run_id).inputs.dataset_inputs]
    figures = client.get_logged_model(result.logged_model_id).metrics
    assert {(figure.dataset_name, figure.dataset_digest) for figure in figures} == {(dataset.name, dataset.digest)}
