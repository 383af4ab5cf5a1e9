"""Whoever can write into the artifact store, but not into the registry's database, gets nothing loaded."""

import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

import ava_mlflow
from ava_core.cli import main
from ava_core.errors import AvaError, IntegrityError
from ava_core.registry import download_model
from ava_core.registry.resolver import make_resolver
from ava_core.runtime import manifest
from tests.registry.conftest import call_register, configure, write_inputs

NAME = "tampered"
CHAMPION = f"models:/{NAME}@champion"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def version(tmp_path_factory, tiny_model, mlflow_server):
    folder = tmp_path_factory.mktemp("tampered")
    inputs = write_inputs(folder / "outputs", tiny_model, 2.0, 2.001, NAME)
    return call_register(inputs, folder / "registration", mlflow_server, NAME, {})


@pytest.fixture
def store(version, mlflow_folder, tmp_path):
    """The version's folder in the artifact store; as it was, after the test."""
    (folder,) = mlflow_folder.glob(f"artifacts/*/models/{version.logged_model_id}/artifacts")
    shutil.copytree(folder, tmp_path / "as-it-was")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "as-it-was", folder)


@pytest.fixture
def mlflow_with_ava(monkeypatch, mlflow_server):
    """MLflow as it starts where Ava is installed, whether or not this environment's entry points are up to date."""
    repositories = artifact_repository_registry._artifact_repository_registry._registry
    monkeypatch.setitem(repositories, "models", ava_mlflow.VerifiedModels)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_server)
    yield mlflow
    mlflow.set_tracking_uri(before)


@pytest.fixture
def mlflow_alone(monkeypatch, mlflow_with_ava):
    """MLflow as it starts where Ava isn't installed."""
    repositories = artifact_repository_registry._artifact_repository_registry._registry
    monkeypatch.setitem(repositories, "models", ModelsArtifactRepository)
    return mlflow_with_ava


def rehash(folder):
    """Make the manifest fit whatever lies there now, as who changed it would."""
    manifest.write(folder, replace(manifest.read(folder), files=manifest.describe_files(folder)))


def change_weights(store):
    weights = store / "artifacts" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    rehash(weights.parent)


def change_config(store):
    config = store / "artifacts" / "model" / "config.json"
    config.write_text(config.read_text().replace('"rope_theta"', '"rope_thetas"'))
    rehash(config.parent)


def change_int8(store):
    (store / "artifacts" / "int8" / "model.onnx").write_bytes(b"another network")
    rehash(store / "artifacts" / "int8")


def change_script(store):
    script = store / "model_from_code.py"
    script.write_text(f"open({str(store.parent / 'ran')!r}, 'w')\n" + script.read_text())


def change_code(store):
    (store / "code" / "ava_core.zip").write_bytes(b"PK\x05\x06" + bytes(18))


def change_loader(store):
    described = store / "MLmodel"
    described.write_text(re.sub("loader_module: .*", "loader_module: evil", described.read_text()))
    (store / "code" / "evil.py").write_text(f"open({str(store.parent / 'ran')!r}, 'w')\n")


def add_module(store):
    (store / "code" / "onnxruntime.py").write_text(f"open({str(store.parent / 'ran')!r}, 'w')\n")


CHANGES = {
    "artifacts/model/manifest.json": [change_weights, change_config],
    "artifacts/int8/manifest.json": [change_int8],
    "model_from_code.py": [change_script],
    "code/ava_core.zip": [change_code],
    "MLmodel": [change_loader],
    "code/onnxruntime.py": [add_module],
}
EACH = [pytest.param(path, change, id=change.__name__) for path, changes in CHANGES.items() for change in changes]


@pytest.mark.parametrize(("path", "change"), EACH)
def test_mlflow_with_ava_refuses_the_changed_file_and_runs_none(store, mlflow_with_ava, path, change):
    change(store)
    with pytest.raises(AvaError, match=f"{path}: (is not the file that was|was not) registered"):
        mlflow_with_ava.pyfunc.load_model(CHAMPION)
    assert not (store.parent / "ran").exists()


@pytest.mark.parametrize(("path", "change"), EACH)
def test_gate_refuses_to_compare_with_a_changed_champion(store, run_gate, monkeypatch, path, change, make_inputs):
    config = configure(NAME, {})
    monkeypatch.setattr("tests.registry.conftest.configure", lambda name, bounds: config)
    change(store)
    with pytest.raises(IntegrityError, match=f"{NAME} version 1, the champion: {path}: .*: restore it, or take"):
        run_gate(make_inputs(1.9))


@pytest.mark.parametrize("change", [change_weights, change_config])
def test_rehashed_weights_are_not_downloaded(store, mlflow_server, tmp_path, change):
    change(store)
    fault = f"^{CHAMPION}: artifacts/model/manifest.json: is not the file that was registered"
    with pytest.raises(IntegrityError, match=fault):
        download_model(CHAMPION, mlflow_server, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_server_does_not_start_with_rehashed_int8_weights(store, mlflow_server, tmp_path):
    change_int8(store)
    with pytest.raises(IntegrityError, match=r"int8/manifest.json: is not the file that was registered"):
        make_resolver(CHAMPION, "auto", mlflow_server, tmp_path / "cache")()


def test_ava_generate_refuses_rehashed_weights_in_one_line(store, mlflow_server, tmp_path, monkeypatch, capsys):
    change_config(store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(sys, "argv", ["ava", "generate", "--model", CHAMPION, "--prompt", "To be"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert "model/manifest.json: is not the file that was registered" in lines[-1] and "Traceback" not in lines[0]


def test_cached_copy_that_was_rehashed_is_fetched_anew(version, mlflow_server, tmp_path):
    folder = download_model(CHAMPION, mlflow_server, tmp_path).folder
    as_registered = (folder / "config.json").read_bytes()
    (folder / "config.json").write_text("{}")
    rehash(folder)
    assert download_model(CHAMPION, mlflow_server, tmp_path).folder == folder
    assert (folder / "config.json").read_bytes() == as_registered


def test_mlflow_without_ava_refuses_rehashed_weights_as_long_as_the_script_is_ours(store, mlflow_alone):
    change_int8(store)
    with pytest.raises(IntegrityError, match=r"artifacts/int8/manifest.json: is not the file that was registered"):
        mlflow_alone.pyfunc.load_model(CHAMPION)


@pytest.mark.parametrize("uri", [CHAMPION, f"models:/{NAME}/1", "models:/{id}"])
def test_untouched_version_is_loaded_by_all_its_addresses(version, mlflow_with_ava, uri):
    loaded = mlflow_with_ava.pyfunc.load_model(uri.format(id=version.logged_model_id))
    assert loaded.predict(["To be"], params={"weights": "float", "max_new_tokens": 2})[0].startswith("To be")


@pytest.mark.parametrize("path", ["artifacts/int8", "MLmodel", "code/ava_core.zip"])
def test_parts_are_held_against_what_was_registered_too(store, mlflow_with_ava, tmp_path, path):
    fetch = mlflow_with_ava.artifacts.download_artifacts
    assert Path(fetch(f"{CHAMPION}/{path}", dst_path=str(tmp_path / "before"))).exists()
    for change in (change_int8, change_loader, change_code):
        change(store)
    with pytest.raises(IntegrityError, match="is not the file that was registered"):
        fetch(f"{CHAMPION}/{path}", dst_path=str(tmp_path))


def test_models_of_others_pass_as_before(client, mlflow_with_ava, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    model = client.create_logged_model(client.create_experiment("others-model"), name="other")
    client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
    fetched = mlflow_with_ava.artifacts.download_artifacts(f"models:/{model.model_id}")
    assert (Path(fetched) / "MLmodel").read_text() == "flavors: {}\n"


def test_mlflow_finds_it_where_ava_is_installed():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert table["project"]["entry-points"]["mlflow.artifact_repository"] == {"models": "ava_mlflow:VerifiedModels"}
    assert "ava_mlflow.py" in table["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


@pytest.mark.slow
def test_check_leaves_no_code_of_ours_that_a_versions_own_would_give_way_to(version, mlflow_server):
    program = (
        "import sys, ava_core.auto_classes, mlflow, ava_mlflow\n"
        "before = {name for name in sys.modules if name.startswith('ava_core')}\n"
        "from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as known\n"
        "known.register('models', ava_mlflow.VerifiedModels)\n"
        f"mlflow.set_tracking_uri({mlflow_server!r})\n"
        f"mlflow.artifacts.download_artifacts({CHAMPION + '/MLmodel'!r})\n"
        "assert before == {name for name in sys.modules if name.startswith('ava_core')}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=200)
