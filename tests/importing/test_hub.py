"""The hub, by a cache that is laid out as `huggingface_hub` lays it out; nothing asks the network."""

import shutil

import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors

from ava_core.errors import AvaError, ConfigError
from ava_core.importing import hub
from ava_core.origin import read_origin
from tests.importing.conftest import finish

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def cache(tmp_path, sources, monkeypatch):
    """A cache that holds OLMoE as `makers/small` at one commit, which is `main`; the network is off."""
    root = tmp_path / "hub"
    repository = root / "models--makers--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for path in sources("olmoe").iterdir():
        shutil.copyfile(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    return root


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_model_is_taken_from_the_cache_and_named_with_its_commit(cache, tmp_path, sources, revision):
    origin = read_origin(finish(f"hub:makers/small{revision}", tmp_path / "out"))
    assert (origin.name, origin.revision) == ("hub:makers/small", COMMIT)
    assert origin.address == f"hub:makers/small@{COMMIT}"
    assert origin.licence["id"] == "apache-2.0"
    local = read_origin(finish(sources("olmoe"), tmp_path / "local"))
    assert {**local.files, "README.md": origin.files["README.md"]} == origin.files


def test_what_isnt_in_the_cache_needs_the_network(cache, tmp_path):
    for address in ("hub:makers/large", "hub:makers/small@v2"):
        with pytest.raises(AvaError, match=f"{address}: is not in the cache, and the hub can't be reached"):
            finish(address, tmp_path / "out")


@pytest.mark.parametrize("address", ["hub:", "hub:a/b/c", "hub:a b", "hub:../x@", "hub:a/b@"])
def test_address_that_is_none_is_refused(address, tmp_path):
    with pytest.raises(ConfigError, match="is no model of the hub: give hub:OWNER/NAME"):
        finish(address, tmp_path / "out")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("GatedRepoError", "is gated: accept its terms on its page, and give your token"),
        ("RepositoryNotFoundError", "is not there, or is private: check the name"),
        ("RevisionNotFoundError", "has no such revision"),
    ],
)
def test_refusal_of_the_hub_is_one_line(kind, message, monkeypatch, tmp_path):
    import httpx

    response = httpx.Response(403, request=httpx.Request("GET", "https://hub"))
    error = getattr(errors, kind)("several\nlines", response=response)

    def refuse(*arguments, **keywords):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(AvaError, match=f"hub:makers/small: {message}") as caught:
        finish("hub:makers/small", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_configuration_comes_alone_and_first_and_neither_pickles_nor_code_are_asked_for(monkeypatch, sources):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(sources("olmoe"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.fetch("hub:makers/small", lambda folder: None)
    assert asked[0] == ["config.json"]
    assert not [
        pattern
        for pattern in asked[1]
        if pattern.endswith((".bin", ".pt", ".py", ".safetensors*", "*"))
        and not pattern.startswith(("LICEN", "COPYING", "NOTICE", "USE_POLICY"))
    ]
