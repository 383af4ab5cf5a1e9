"""The way back: from the registry to a folder that can be trusted."""

import json

import pytest

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.registry import download_model, list_versions
from ava_core.runtime.digests import digest_tree
from tests.registry.proxy import Proxy


@pytest.mark.parametrize("address", ["models:/{name}@champion", "models:/{name}/1"])
def test_downloaded_model_is_the_registered_folder_byte_for_byte(registered, mlflow_server, tmp_path, address):
    folder = download_model(address.format(name=registered.result.name), mlflow_server, tmp_path / "cache").folder
    assert digest_tree(folder) == digest_tree(registered.inputs.model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_model_in_the_cache_is_not_fetched_again_unless_it_was_damaged(registered, mlflow_server, tmp_path):
    uri = f"models:/{registered.result.name}@champion"
    folder = download_model(uri, mlflow_server, tmp_path).folder
    with Proxy(mlflow_server) as proxy:
        assert download_model(uri, proxy.address, tmp_path).folder == folder
        assert not [line for line in proxy.seen if "mlflow-artifacts" in line]
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        download_model(uri, proxy.address, tmp_path)
    assert digest_tree(folder) == digest_tree(registered.inputs.model)


def test_file_changed_in_the_registry_is_refused_by_name(
    make_inputs, run_register, client, mlflow_server, tmp_path, model_name
):
    result = run_register(make_inputs(2.0))
    spoilt = tmp_path / "up" / "artifacts" / "model" / "tokenizer.json"
    spoilt.parent.mkdir(parents=True)
    spoilt.write_text("{}")
    client.log_model_artifacts(result.logged_model_id, str(tmp_path / "up"))
    with pytest.raises(IntegrityError, match=r"tokenizer.json: its bytes are not those in the manifest"):
        download_model(f"models:/{model_name}/1", mlflow_server, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("tokenizer.json"))


def test_weights_that_can_run_code_are_refused(make_inputs, run_register, mlflow_server, tmp_path, copy_of, model_name):
    from ava_core.runtime import manifest
    from tests.registry.conftest import finished, write_evaluation

    inputs = make_inputs(2.0)
    inputs.model = copy_of(inputs.model)
    (inputs.model / "pytorch_model.bin").write_bytes(b"a pickle")
    finished(inputs.model, "train", manifest.read(inputs.model).inputs)
    inputs.evaluation = write_evaluation(tmp_path / "again", inputs.model, [], {"test_bits_per_byte": 2.0, "k": 1.0})
    run_register(inputs)
    with pytest.raises(IntegrityError, match=r"pytorch_model.bin: a format that can run code"):
        download_model(f"models:/{model_name}@champion", mlflow_server, tmp_path / "cache")


@pytest.mark.parametrize("address", ["@nobody", "/99"])
def test_version_that_does_not_exist_is_one_line(registered, mlflow_server, tmp_path, address):
    with pytest.raises(AvaError, match="has no such version: see `ava show --registry") as caught:
        download_model(f"models:/{registered.result.name}{address}", mlflow_server, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["models:/x", "models:/x@", "models:/x/latest", "runs:/1/model", "models:/a/b/1", "x"])
def test_what_is_no_address_of_a_version_is_refused(uri, tmp_path):
    with pytest.raises(ConfigError, match="give models:/NAME@ALIAS or models:/NAME/VERSION"):
        download_model(uri, "http://127.0.0.1:9", tmp_path)


@pytest.mark.slow
def test_versions_are_listed_newest_first_with_aliases_and_figures(
    make_inputs, run_register, mlflow_server, model_name
):
    run_register(make_inputs(2.0, int8=2.001))
    run_register(make_inputs(2.5))
    newest, oldest = list_versions(model_name, mlflow_server)
    assert (newest.version, newest.aliases) == (2, ("challenger",))
    assert (oldest.version, oldest.aliases) == (1, ("champion",))
    assert oldest.figures["int8_test_bits_per_byte"] == 2.001
    assert json.loads(newest.tags["ava.gate"])["bounds"][0]["passed"] is False


def test_model_without_versions_lists_nothing(mlflow_server):
    assert list_versions("never-registered", mlflow_server) == []
