"""While the registry is away a model that was had before is had again; a registry that answers is always believed."""

import json
import logging

import pytest

from ava_core.errors import AvaError
from ava_core.registry import download_model
from ava_core.registry.remembered import FOLDER
from ava_core.registry.resolver import make_resolver
from ava_core.runtime.digests import digest_tree
from ava_core.tracking.faults import Unreachable
from tests.registry.proxy import Proxy


class Registry:
    """The real one behind a proxy; `status` is answered in its place, unless that is None."""

    def __init__(self, server):
        self.status = None
        self.proxy = Proxy(server, before=lambda method, path: self.status)
        self.address = self.proxy.address.replace("://", "://user:hidden@")


@pytest.fixture
def registry(mlflow_server):
    registry = Registry(mlflow_server)
    with registry.proxy:
        yield registry


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("weights", ["model", "int8", "auto"])
@pytest.mark.parametrize("address", ["models:/{name}@champion", "models:/{name}/1"])
def test_a_model_that_was_had_is_had_again_with_one_warning(registered, registry, tmp_path, caplog, address, weights):
    uri = address.format(name=registered.result.name)
    before = download_model(uri, registry.address, tmp_path, weights)
    assert not before.remembered and not warnings_of(caplog)
    registry.status = 503
    again = download_model(uri, registry.address, tmp_path, weights)
    assert again == before._replace(remembered=True)
    (warning,) = warnings_of(caplog)
    assert uri in warning and "version 1" in warning and "HTTP 503" in warning and "hidden" not in warning


def test_a_server_that_is_gone_altogether_is_away(registered, mlflow_server, tmp_path):
    uri = f"models:/{registered.result.name}@champion"
    with Proxy(mlflow_server) as proxy:
        before = download_model(uri, proxy.address, tmp_path)
    assert download_model(uri, proxy.address, tmp_path).folder == before.folder


def test_what_was_never_had_is_not_had_while_the_registry_is_away(registered, registry, tmp_path):
    name = registered.result.name
    download_model(f"models:/{name}@champion", registry.address, tmp_path)
    registry.status = 503
    for uri, address, weights in (
        (f"models:/{name}/1", registry.address, "model"),
        (f"models:/{name}@champion", registry.address, "int8"),
        (f"models:/{name}@champion", "http://127.0.0.1:9", "model"),
    ):
        with pytest.raises(Unreachable, match=r"HTTP 503|no MLflow server"):
            download_model(uri, address, tmp_path, weights)


@pytest.mark.parametrize(("status", "says"), [(401, "doesn't know us"), (403, "doesn't let us")])
def test_a_refusal_is_believed(registered, registry, tmp_path, status, says):
    uri = f"models:/{registered.result.name}@champion"
    download_model(uri, registry.address, tmp_path)
    registry.status = status
    with pytest.raises(AvaError, match=says):
        download_model(uri, registry.address, tmp_path)


def test_an_alias_that_was_deleted_is_believed(
    make_inputs, run_register, client, registry, tmp_path, model_name, caplog
):
    run_register(make_inputs(2.0))
    uri = f"models:/{model_name}@champion"
    download_model(uri, registry.address, tmp_path / "cache")
    client.delete_registered_model_alias(model_name, "champion")
    with pytest.raises(AvaError, match="champion"):
        download_model(uri, registry.address, tmp_path / "cache")


def test_a_copy_that_was_changed_is_not_used(registered, registry, tmp_path):
    uri = f"models:/{registered.result.name}@champion"
    folder = download_model(uri, registry.address, tmp_path).folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    registry.status = 503
    with pytest.raises(Unreachable, match="HTTP 503"):
        download_model(uri, registry.address, tmp_path)
    registry.status = None
    download_model(uri, registry.address, tmp_path)
    assert digest_tree(folder) == digest_tree(registered.inputs.model)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: "",
        lambda note: json.dumps(note)[:-9],
        lambda note: "[" * 100_000,
        lambda note: json.dumps([note]),
        lambda note: json.dumps({**note, "version": "1"}),
        lambda note: json.dumps({**note, "tags": {"ava.model": 1}}),
        lambda note: json.dumps({**note, "address": "models:/other@champion"}),
        lambda note: json.dumps({**note, "extra": 1}),
        lambda note: json.dumps({**note, "name": "x" * 2**21}),
    ],
)
def test_a_note_that_was_damaged_is_not_used(registered, registry, tmp_path, caplog, change):
    uri = f"models:/{registered.result.name}@champion"
    download_model(uri, registry.address, tmp_path)
    (path,) = (tmp_path / FOLDER).iterdir()
    text = path.read_text()
    assert "hidden" not in text and path.stat().st_mode & 0o077 == 0
    path.write_text(change(json.loads(text)))
    registry.status = 503
    with pytest.raises(Unreachable, match="HTTP 503"):
        download_model(uri, registry.address, tmp_path)
    assert any(f"{path.name}: is damaged" in line for line in warnings_of(caplog))


def test_a_cache_that_cannot_be_written_to_is_no_fault_of_the_model(registered, registry, tmp_path, caplog):
    (tmp_path / FOLDER).write_text("a file is in the way")
    uri = f"models:/{registered.result.name}@champion"
    assert download_model(uri, registry.address, tmp_path).version == 1
    assert "can't be remembered" in warnings_of(caplog)[0]


@pytest.mark.slow
def test_resolving_begins_with_the_remembered_version_and_goes_on_when_the_registry_is_back(
    make_inputs, run_register, registry, tmp_path, model_name, caplog
):
    run_register(make_inputs(2.0))
    address, cache = f"models:/{model_name}@champion", tmp_path / "cache"
    first = make_resolver(address, "model", registry.address, cache)()
    registry.status = 503
    resolve = make_resolver(address, "model", registry.address, cache)
    assert resolve() == resolve() == first
    assert len(warnings_of(caplog)) == 1
    registry.status = None
    run_register(make_inputs(1.5))
    assert resolve().version == "2"
    registry.status = 503
    with pytest.raises(Unreachable):
        resolve()
    assert make_resolver(address, "model", registry.address, cache)().version == "2"
