"""Addresses: which one counts, what is shown of it, and the pages."""

import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.errors import ConfigError
from ava_core.tracking import model_url, run_url, tracking_uri
from ava_core.tracking.address import DEFAULT_URI, LOCAL_SERVER, sqlite_file

# A busy machine is no fault of the code.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.text("abcdefghijklmnop0123456789", min_size=8, max_size=12)


def test_our_variable_comes_before_mlflows_and_both_before_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, theirs = "http://ours:1", "http://theirs:2"
    assert tracking_uri({"AVA_TRACKING_URI": ours, "MLFLOW_TRACKING_URI": theirs}) == ours
    assert tracking_uri({"AVA_TRACKING_URI": "", "MLFLOW_TRACKING_URI": theirs}) == theirs
    assert tracking_uri({}) == DEFAULT_URI


def test_given_run_is_on_mlflows_address_whatever_ours_says():
    both = {"AVA_TRACKING_URI": "http://ours:1", "MLFLOW_TRACKING_URI": "http://theirs:2", "MLFLOW_RUN_ID": "r"}
    assert tracking_uri(both) == "http://theirs:2"
    assert tracking_uri({**both, "MLFLOW_TRACKING_URI": " "}) == "http://ours:1"


def test_local_server_is_the_default_while_it_listens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LOCAL_SERVER.parent.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        LOCAL_SERVER.write_text(json.dumps({"address": address, "pid": 1, "started": "1"}))
        assert tracking_uri({}) == address
    assert tracking_uri({}) == DEFAULT_URI
    LOCAL_SERVER.write_text("{")
    assert tracking_uri({}) == DEFAULT_URI


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_workspace_that_dvc_deletes_uses_the_checkouts_server_and_database(tmp_path, monkeypatch, below):
    checkout = tmp_path / "what?" / "ava"
    workspace = checkout / ".dvc" / "tmp" / "exps" / "tmp1a2b" / below
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    for variables, file in (({}, ".ava/mlflow/mlflow.db"), ({"AVA_TRACKING_URI": "sqlite:///mine/m.db"}, "mine/m.db")):
        uri = tracking_uri(variables)
        assert "?" not in uri and sqlite_file(uri).resolve() == checkout / file
    assert tracking_uri({"AVA_TRACKING_URI": "sqlite:////abs/m.db"}) == "sqlite:////abs/m.db"
    assert tracking_uri({"AVA_TRACKING_URI": "http://ours:1"}) == "http://ours:1"
    note = checkout / LOCAL_SERVER
    note.parent.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        note.write_text(json.dumps({"address": address, "pid": 1, "started": "1"}))
        assert tracking_uri({}) == address


def test_folder_that_only_looks_like_dvcs_is_a_checkout_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc" / "tmp" / "exps").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc" / "tmp" / "exps")
    assert tracking_uri({}) == DEFAULT_URI


@pytest.mark.parametrize("uri", ["mlruns", "/tmp/mlruns", "file:///tmp/mlruns"])
def test_file_store_is_refused_with_what_to_give_instead(uri):
    with pytest.raises(ConfigError, match=r"AVA_TRACKING_URI = .*give http://HOST:PORT or sqlite:///FILE"):
        tracking_uri({"AVA_TRACKING_URI": uri})


@relaxed
@given(user=words, password=words, host=words, query=words)
def test_pages_show_neither_credentials_nor_queries(user, password, host, query):
    uri = f"https://{user}:{password}@{host}.example:5000/path?key={query}"
    shown = (run_url(uri, "1", "r"), model_url(uri, "m", 3))
    for text in shown:
        assert host in text
        assert f"{user}:" not in text and password not in text.replace(host, "") and f"key={query}" not in text


def test_pages_exist_only_on_a_server():
    classic = "?workflowType=machine_learning"
    assert run_url("http://h:1/", "7", "abc") == f"http://h:1/#/experiments/7/runs/abc{classic}"
    assert model_url("http://h:1", "a b", 2) == f"http://h:1/#/models/a%20b/versions/2{classic}"
    assert run_url(DEFAULT_URI, "7", "abc") is None
    assert model_url(DEFAULT_URI, "m", 2) is None


def test_database_file_of_an_address():
    assert str(sqlite_file(DEFAULT_URI)) == ".ava/mlflow/mlflow.db"
    assert str(sqlite_file("sqlite:////var/x.db")) == "/var/x.db"
    assert sqlite_file("http://h:1/x") is None
