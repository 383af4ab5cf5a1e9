"""A training in a process of its own, shown on a real server, absent and killed as the test wants it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from ava_core.tracking.connection import connect
from ava_core.tracking.live import LiveRun, live_run

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_"))}
# Plays a training: `first` to `last`, then waits for a word on standard input, or for its death.
TRAINING = """
import json, sys
from pathlib import Path
from ava_core.tracking.live import live_run

state, experiment, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with live_run(experiment=experiment, parameters={"train": {"steps": 10}}, state=state):
    with (state / "history.jsonl").open("a") as file:
        for step in range(first, last + 1):
            file.write(json.dumps({"step": step, "tokens_seen": 100 * step, "train_loss": 1 / step}) + "\\n")
    print("trained", flush=True)
    sys.stdin.readline()
"""


def live(state, environment, experiment="none"):
    return live_run(experiment=experiment, parameters={"seed": 1}, state=state, environment={**CLEAN, **environment})


def write_history(state, count):
    with (state / "history.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, "tokens_seen": step}) + "\n" for step in range(1, count + 1))


def test_without_an_address_nothing_happens(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for environment in ({}, {"MLFLOW_TRACKING_URI": " "}):
        assert isinstance(live(tmp_path, environment), nullcontext)
    assert not caplog.messages and not list(tmp_path.iterdir())


def test_address_that_mlflow_refuses_is_a_warning(tmp_path, caplog):
    assert isinstance(live(tmp_path, {"MLFLOW_TRACKING_URI": "./mlruns"}), nullcontext)
    (message,) = caplog.messages
    assert message.startswith("mlflow: the training isn't shown: MLFLOW_TRACKING_URI = ./mlruns: ")


def test_resumed_training_has_the_identity_of_the_one_before_and_a_new_one_another(tmp_path):
    address = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    first, resumed = (live(tmp_path, address).assignment.identity for _ in range(2))
    (tmp_path / "other").mkdir()
    assert first == resumed != live(tmp_path / "other", address).assignment.identity


def test_training_in_a_pipeline_has_the_run_of_its_step_and_no_other(tmp_path):
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AVA_PIPELINE_RUN": "p-1"}
    assert live(tmp_path, environment).assignment.identity == {"ava.pipeline_run": "p-1", "ava.task": "train"}
    assert not list(tmp_path.iterdir())


def test_sender_that_can_not_start_or_dies_fails_no_training(tmp_path, caplog, monkeypatch):
    address = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    write_history(tmp_path, 3)
    for interpreter in ("/nowhere/python", "/bin/false"):
        monkeypatch.setattr("ava_core.tracking.live.sys.executable", interpreter)
        with live(tmp_path, address):
            pass
    monkeypatch.undo()
    first, second = caplog.messages
    assert "No such file" in first
    assert second.startswith("mlflow: 3 of 3 steps were not sent to http://127.0.0.1:9")


def test_sender_that_hangs_is_ended_and_not_waited_for(tmp_path, caplog, monkeypatch):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    monkeypatch.setattr("ava_core.tracking.live.sys.executable", str(hanging))
    monkeypatch.setattr("ava_core.tracking.live.CLOSING_MARGIN", -9.9)
    write_history(tmp_path, 2)
    with live(tmp_path, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}) as shown:
        process = shown._process
    assert process.returncode == -signal.SIGKILL
    assert caplog.messages[0].startswith("mlflow: 2 of 2 steps were not sent")


def test_training_that_fails_raises_its_own_error(tmp_path, monkeypatch):
    monkeypatch.setattr("ava_core.tracking.live.sys.executable", "/bin/false")
    with pytest.raises(ZeroDivisionError), live(tmp_path, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}):
        1 / 0


@pytest.mark.slow
def test_absent_server_costs_a_bounded_time_and_one_line_without_the_password(tmp_path, caplog):
    write_history(tmp_path, 5)
    watched = live(tmp_path, {"MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:9"})
    short = LiveRun(replace(watched.assignment, closing=0.5), watched.environment)
    with short:
        command = short._process.args
        pid = short._process.pid
        while not caplog.messages:
            time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
    fault, unsent = caplog.messages
    assert "http://***@127.0.0.1:9: no MLflow server answers" in fault
    assert "5 of 5 steps were not sent to http://***@127.0.0.1:9" in unsent
    assert "secret" not in " ".join([*caplog.messages, *command, *(path.read_text() for path in tmp_path.iterdir())])


@pytest.fixture
def train(tmp_path, mlflow_server, request):
    """Start a training in a process of its own."""
    started = []

    def start(first, last):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, tmp_path, request.node.name, str(first), str(last)],
            env={**CLEAN, "MLFLOW_TRACKING_URI": mlflow_server},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "trained\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def eventually(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_and_resumed_training_is_one_run_with_each_row_once(tmp_path, mlflow_server, train, request):
    client = connect(mlflow_server)

    def run():
        experiment = client.get_experiment_by_name(request.node.name)
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return found[0] if found else None

    def sent():
        return run() is not None and [
            (point.step, point.value) for point in client.get_metric_history(run().info.run_id, "train_loss")
        ]

    process = train(1, 6)
    eventually(lambda: sent() == [(step, 1 / step) for step in range(1, 7)])
    assert run().info.status == "RUNNING"
    process.send_signal(signal.SIGKILL)
    eventually(lambda: run().info.status == "KILLED")
    (tmp_path / "history.jsonl").write_text("")  # killed before the first checkpoint
    process = train(1, 10)
    # Not at the training's end alone, which waits for a bounded time: a busy machine takes longer to import MLflow.
    eventually(lambda: sent() == [(step, 1 / step) for step in range(1, 11)])
    process.communicate("\n")
    assert process.returncode == 0
    assert run().info.status == "FINISHED"
    assert run().data.params == {"train.steps": "10"}
