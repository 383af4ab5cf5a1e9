"""The local MLflow server: found when it is there, started when it isn't, and nobody else's."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from ava_core.errors import AvaError, ConfigError
from pipelines import mlflow_server as local
from pipelines.processes import Process

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in local.CLIENT_VARIABLES}


def test_server_that_runs_is_found_and_not_started_twice(mlflow_server, mlflow_folder):
    with ThreadPoolExecutor(3) as callers:
        addresses = list(callers.map(lambda _: local.ensure(mlflow_folder, ENVIRONMENT), range(3)))
    assert addresses == [mlflow_server] * 3
    with urllib.request.urlopen(f"{mlflow_server}/version") as answer:
        assert answer.status == 200


def test_server_listens_on_loopback_only(mlflow_server):
    port = int(mlflow_server.rpartition(":")[2])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            rows = [line.split() for line in lines][1:]
        listening += [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    assert listening == ["0100007F"]


@pytest.mark.parametrize("name", local.ADDRESS_VARIABLES)
def test_address_from_the_environment_is_used_when_it_answers(mlflow_server, tmp_path, name):
    assert local.ensure(tmp_path, {name: mlflow_server}) == mlflow_server
    assert list(tmp_path.iterdir()) == []


def test_address_from_the_environment_that_does_not_answer_is_one_line_without_its_password(tmp_path):
    with pytest.raises(AvaError, match=r"MLFLOW_TRACKING_URI = http://\*\*\*@127.0.0.1:9: doesn't answer") as caught:
        local.ensure(tmp_path, {"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"})
    assert "secret" not in str(caught.value)


def test_file_store_is_refused_and_a_database_is_taken_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="no longer tracks in plain files"):
        local.ensure(tmp_path, {"AVA_TRACKING_URI": "file:///tmp/mlruns"})
    assert local.ensure(tmp_path, {"AVA_TRACKING_URI": "sqlite:///x.db"}) == "sqlite:///x.db"


def test_recycled_process_number_is_not_taken_for_our_server(tmp_path):
    (tmp_path / "server.json").write_text(
        json.dumps({"address": "http://127.0.0.1:9", "pid": os.getpid(), "started": "1"})
    )
    server = local.read(tmp_path)
    assert server is not None and not server.running
    assert local.stop(tmp_path) is False


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A process that stands for the server of a folder, recorded as such; and what a new server would be."""
    folder = tmp_path / "original" / ".ava" / "mlflow"
    folder.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "600"], cwd=folder, start_new_session=True)
    record = {**asdict(Process.of(process.pid)), "address": "http://127.0.0.1:9", "folder": str(folder)}
    (folder / "server.json").write_text(json.dumps(record))
    monkeypatch.setattr(local, "_probe", lambda address: None)
    monkeypatch.setattr(local, "_start", lambda folder, environment: local.Server(1, "", f"new in {folder}"))
    yield folder, process
    process.kill()
    process.wait()


def test_copied_checkout_neither_uses_nor_ends_the_server_of_the_original(stand_in):
    folder, process = stand_in
    assert local.ensure(folder, ENVIRONMENT) == "http://127.0.0.1:9"
    copy = folder.parents[1].with_name("copy")
    shutil.copytree(folder.parents[1], copy)
    copied = copy / ".ava" / "mlflow"
    assert local.ensure(copied, ENVIRONMENT) == f"new in {copied}"
    assert local.stop(copied) is False and process.poll() is None


def test_server_of_a_moved_checkout_is_ended_before_another_opens_its_database(stand_in, capsys):
    folder, process = stand_in
    moved = folder.parents[1].rename(folder.parents[1].with_name("moved")) / ".ava" / "mlflow"
    assert local.ensure(moved, ENVIRONMENT) == f"new in {moved}"
    assert process.wait(60) == -signal.SIGTERM
    assert f"http://127.0.0.1:9 was started in {folder}: starting it again" in capsys.readouterr().err


@pytest.mark.slow
def test_server_that_was_killed_starts_again_at_its_address_with_its_data_whatever_its_folder_is_called(tmp_path):
    from mlflow import MlflowClient

    folder = tmp_path / "what? 100%25 #1" / "mlflow"
    first = local.ensure(folder, ENVIRONMENT)
    MlflowClient(first).create_experiment("kept")
    server = local.read(folder)
    assert server is not None and os.getsid(server.pid) == server.pid != os.getsid(0)
    assert [path.name for path in tmp_path.iterdir()] == ["what? 100%25 #1"]
    os.killpg(server.pid, 9)
    os.waitpid(server.pid, 0)
    second = local.ensure(folder, ENVIRONMENT)
    try:
        assert second == first
        assert MlflowClient(second).get_experiment_by_name("kept") is not None
    finally:
        assert local.stop(folder) is True
    assert local.stop(folder) is False
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db", "server.log"}


def test_port_that_somebody_else_has_by_now_is_left_to_them():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert local._free_port(port) not in (0, port)
    assert local._free_port(port) == port


@pytest.mark.slow
def test_server_that_can_not_start_says_why(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database")
    with pytest.raises(AvaError, match=r"mlflow: the server ended with code 1: .*server.log"):
        local.ensure(tmp_path, ENVIRONMENT)
    assert not (tmp_path / "server.json").exists()


def test_start_that_took_too_long_leaves_no_half_made_database(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(local, "START_SECONDS", 2.0)
        with pytest.raises(AvaError, match="doesn't answer after 2 s"):
            local.ensure(tmp_path, ENVIRONMENT)
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "server.json").exists()
