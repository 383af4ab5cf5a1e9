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
