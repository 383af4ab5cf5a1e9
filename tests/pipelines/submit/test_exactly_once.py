"""However the server fails while a run is made: one run from one submit, or none and a line that says so."""

import os
import subprocess
import sys
import threading

import pytest

from ava_core.errors import AvaError
from pipelines.submit import connection, exactly_once

CREATE_RUN = "RunService_CreateRun"
MAKERS = (
    "PipelineService_CreatePipeline",
    "UploadPipelineVersion",
    "ExperimentService_CreateExperiment",
    CREATE_RUN,
)
FAULTS = {
    "dropped before it was taken": {"drop": "before"},
    "dropped after it was taken": {"drop": "after"},
    "dropped three times before it was taken": {"drop": "before", "times": 3},
    "bad gateway": {"status": 502},
    "unavailable": {"status": 503},
    "gateway timeout": {"status": 504},
    "too many requests": {"status": 429, "retry_after": "0"},
    "too many requests, no time named": {"status": 429},
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(exactly_once, "LOOK_AFTER_SECONDS", (0.0, 0.1, 0.2, 0.4))


@pytest.mark.parametrize("operation", MAKERS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_lost_answer_leaves_one_of_each(server, submit, operation, fault):
    server.fail(operation, **fault)
    assert submit(server) == 0
    state = server.state
    assert [len(made) for made in (state.pipelines, state.versions, state.experiments, state.runs)] == [1, 1, 1, 1]
    assert server.count(operation) == (1 if fault.get("drop") == "after" else 1 + fault.get("times", 1))


@pytest.mark.parametrize("operation", MAKERS)
def test_answer_that_comes_too_late_is_found(server, submit, impatient, operation):
    server.fail(operation, delay_answer=0.6)
    assert submit(server) == 0
    assert server.count(operation) == 1 and len(server.state.runs) == 1


def test_run_that_appears_only_after_we_gave_up_on_the_answer_is_found(server, submit, impatient):
    server.fail(CREATE_RUN, delay=0.5)
    assert submit(server) == 0
    assert server.count(CREATE_RUN) == 1 and len(server.state.runs) == 1


def test_run_that_appears_after_a_dropped_connection_is_not_made_again(server, submit, monkeypatch):
    """The connection is cut by a proxy while the server goes on."""
    create = server.state._create_run
    server.fail(CREATE_RUN, drop="before")
    looks = []

    def list_runs(call):
        looks.append(call)
        if len(looks) == 3:
            create(next(made for made in server.calls if made.operation == CREATE_RUN))
        return type(server.state)._list_runs(server.state, call)

    monkeypatch.setattr(server.state, "_list_runs", list_runs)
    assert submit(server) == 0
    assert server.count(CREATE_RUN) == 1 and len(server.state.runs) == 1


def test_request_that_the_server_may_still_have_is_not_sent_again(server, submit, impatient):
    server.fail(CREATE_RUN, delay=0.6, drop="before")
    with pytest.raises(AvaError, match=r"no answer in time; the same command with --submit-id [0-9a-f]{32} takes up"):
        submit(server)
    assert server.count(CREATE_RUN) == 1 and server.state.runs == []


def test_fault_of_the_server_itself_is_not_repeated(server, submit):
    server.fail(CREATE_RUN, status=500)
    with pytest.raises(AvaError, match=r": 500 .*: told to fail; the same command with --submit-id [0-9a-f]{32}"):
        submit(server)
    assert server.count(CREATE_RUN) == 1 and server.state.runs == []


def test_run_is_not_made_again_while_nobody_can_say_whether_it_is_there(server, submit):
    server.fail("RunService_ListRuns")  # the look before it is made fails in nothing
    server.fail(CREATE_RUN, drop="after")
    server.fail("RunService_ListRuns", drop="before", times=1000)
    with pytest.raises(AvaError, match=r"dropped the connection .*--submit-id"):
        submit(server)
    assert server.count(CREATE_RUN) == 1 and len(server.state.runs) == 1


def test_submit_that_never_gets_through_says_so_after_a_bounded_number_of_times(server, submit):
    server.fail(CREATE_RUN, drop="before", times=1000)
    with pytest.raises(AvaError, match=r"dropped the connection .*RemoteDisconnected.*--submit-id"):
        submit(server)
    assert server.count(CREATE_RUN) == exactly_once.ATTEMPTS and server.state.runs == []


def test_refusal_that_lasts_says_to_come_again(server, submit):
    server.fail(CREATE_RUN, status=429, retry_after="0", times=1000)
    with pytest.raises(AvaError, match=r"has too much to do \(429\): submit again later: told to fail$"):
        submit(server)
    assert server.count(CREATE_RUN) == exactly_once.ATTEMPTS


def test_interrupted_submit_is_taken_up_by_its_id(server, submit, capsys, monkeypatch):
    server.fail(CREATE_RUN, drop="after")

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(exactly_once, "sleep", interrupt)
    with pytest.raises(SystemExit) as stopped:
        submit(server, "--submit-id", "build-17")
    assert stopped.value.code == 130
    assert "interrupted: the same command with --submit-id build-17 takes up" in capsys.readouterr().err
    monkeypatch.undo()
    assert submit(server, "--submit-id", "build-17") == 0
    assert len(server.state.runs) == 1


@pytest.mark.slow
def test_two_who_submit_at_once_share_the_version_and_get_a_run_each(server, params, tmp_path):
    for operation in MAKERS[:3]:
        server.fail(operation, barrier=threading.Barrier(2, timeout=120), times=2)
    command = [sys.executable, "-m", "pipelines.submit", "--params", str(params), "--host", server.address]
    environment = {**os.environ, "HOME": str(tmp_path)}
    both = [
        subprocess.Popen(
            [*command, "--data-uri", "s3://bucket/raw"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    state = server.state
    assert [len(made) for made in (state.pipelines, state.versions, state.experiments, state.runs)] == [1, 1, 1, 2]
    assert [server.count(operation) for operation in MAKERS] == [2, 2, 2, 2]
