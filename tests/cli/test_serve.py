"""What `ava serve` makes of its flags."""

import pytest
from typer.testing import CliRunner

from ava_core.cli import serve as command
from ava_core.cli.main import app
from ava_core.errors import ConfigError


@pytest.fixture
def served(monkeypatch):
    """What the server would be run with."""
    found = {}
    monkeypatch.setattr("ava_core.serving.http.server.run", lambda **options: found.update(options))

    def serve(*flags):
        found.clear()
        outcome = CliRunner().invoke(app, ["serve", "--model", "folder", *flags])
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return found

    return serve


def test_hosts_origins_keys_and_the_log_reach_the_server(served, tmp_path):
    (tmp_path / "keys").write_text("first\n\nsecond\n")
    flags = ["--allowed-host", "models.example", "--allowed-host", "*.local", "--api-key-file", str(tmp_path / "keys")]
    found = served(*flags, "--allowed-origin", "https://Chat.Example:8443", "--no-access-log")
    access = found["access"]
    assert access.hosts == ["models.example", "*.local"] and access.origins == ["https://chat.example:8443"]
    assert access.keys == ["first", "second"] and found["log_requests"] is False


def test_by_default_no_origin_may_ask_and_requests_are_logged(served, monkeypatch):
    monkeypatch.setenv(command.KEYS, "a, b")
    found = served()
    assert (found["access"].hosts, found["access"].origins, found["access"].keys) == ([], [], ["a", "b"])
    assert found["log_requests"] is True


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--allowed-host", "https://models.example"),
        ("--allowed-host", "models.example:443"),
        ("--allowed-host", "models.*"),
        ("--allowed-host", ""),
        ("--allowed-origin", "chat.example"),
        ("--allowed-origin", "https://chat.example/"),
        ("--allowed-origin", "https://*.example"),
        ("--allowed-origin", "null"),
    ],
)
def test_what_is_no_host_or_origin_is_refused_by_name(served, flag, value):
    with pytest.raises(ConfigError, match=rf"^{flag} {value}".replace("*", r"\*")):
        served(flag, value)


@pytest.fixture
def index(tmp_path):
    """An index whose second passage has the access label `court`."""
    from ava_core.retrieval.passage import Passage
    from tests.retrieval.made import build

    given = [Passage("All.", "a", 0, 4), Passage("Some.", "b", 0, 5, label="court")]
    return build(tmp_path / "index", given, None, settings={"embedding": "none", "http": None})


def test_an_index_and_the_labels_of_keys_reach_the_server(served, tmp_path, index, monkeypatch):
    from ava_core.serving.http.admission import key_digest

    assert served()["retriever"] is None
    monkeypatch.setenv(command.KEYS, "a,b")
    (tmp_path / "labels.json").write_text(f'{{"{key_digest("b")}": ["court"]}}')
    found = served("--index", str(index), "--key-labels", str(tmp_path / "labels.json"))
    assert len(found["retriever"].index) == 2
    assert found["access"].labels == {key_digest("b"): {"court"}}
    assert served("--index", str(index))["access"].labels == {}


def test_labels_that_no_key_has_are_one_warning(tmp_path, index, caplog):
    from ava_core.cli.served_index import open_served_index
    from ava_core.serving.http.admission import key_digest

    (tmp_path / "labels.json").write_text(f'{{"{key_digest("b")}": ["court"]}}')
    open_served_index(index, None, tmp_path / "labels.json", ["a", "b"], 1)
    assert not caplog.records
    open_served_index(index, None, None, ["a", "b"], 1)
    assert caplog.text.count("access labels are found by nobody") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--key-labels", "labels.json"), "--key-labels labels.json: belongs to an index"),
        (("--embedding-model", "folder"), "--embedding-model folder: belongs to an index"),
        (("--index", "nowhere"), "nowhere is no index"),
        (("--index", "{index}", "--embedding-model", "folder"), "retrieval.embedding = none: needs none"),
        (("--index", "{index}", "--key-labels", "labels.json"), "labels belong to API keys, and there are none"),
    ],
)
def test_flags_of_an_index_that_is_wrong_are_refused_by_name(served, index, monkeypatch, flags, says):
    monkeypatch.delenv(command.KEYS, raising=False)
    with pytest.raises(ConfigError, match=says):
        served(*(flag.format(index=index) for flag in flags))
