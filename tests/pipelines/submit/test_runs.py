"""Following a run, trying it again, ending it."""

import re

import pytest

from ava_core.errors import AvaError
from pipelines.submit import watch

GET = "RunService_GetRun"


@pytest.fixture
def run(server, submit):
    """A run that was just submitted."""
    submit(server)
    return server.state.runs[0]


def test_waiting_shows_each_state_of_each_step_and_how_it_ends(server, submit, capsys):
    assert submit(server, "--wait") == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [re.sub(r"^\d\d:\d\d:\d\d +", "", line) for line in lines[2:-1]]
    names = [line.split()[0] for line in shown]
    assert names[:4] == ["importer", "importer", "preprocess", "preprocess"]
    assert {"train", "quantize-int8", "evaluate", "register", "record-outcome"} <= set(names)
    assert shown[2:4] == ["preprocess            RUNNING", "preprocess            SUCCEEDED  42 s"]
    assert not [name for name in names if name.endswith("-driver") or name == "root"]
    assert lines[-1] == f"run {server.state.runs[0]['run_id']} SUCCEEDED"


def test_run_that_fails_exits_1_with_the_step_and_its_error_on_one_line(server, submit, capsys):
    server.state.fails_at = "train"
    assert submit(server, "--wait") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("train                 FAILED  42 s: exit code 1: out of memory")
    assert lines[-1].endswith(" FAILED: train: exit code 1: out of memory")


def test_run_that_somebody_cancels_ends_the_wait(server, tend, run, capsys):
    run["state"] = "CANCELING"
    assert tend(server, "--watch", run["run_id"]) == 1
    assert capsys.readouterr().out.endswith(f"run {run['run_id']} CANCELED\n")


def test_server_that_goes_away_for_a_while_does_not_end_the_wait(server, submit, capsys):
    server.fail(GET, times=2)
    server.fail(GET, status=503, times=7)
    server.fail(GET, drop="before", times=7)
    assert submit(server, "--wait") == 0
    away = [line for line in capsys.readouterr().out.splitlines() if "waiting for it" in line]
    assert len(away) == 1 and "the server 503 SERVICE UNAVAILABLE: told to fail: waiting for it" in away[0]


def test_server_that_stays_away_ends_the_wait(server, submit, monkeypatch):
    monkeypatch.setattr(watch, "OUTAGE_SECONDS", 0.0)
    server.fail(GET, drop="before", times=1000)
    with pytest.raises(AvaError, match="dropped the connection"):
        submit(server, "--wait")


def test_token_that_is_no_longer_valid_ends_the_wait_at_once(server, submit):
    server.fail(GET, status=401)
    with pytest.raises(AvaError, match=r"refuses us \(401\)"):
        submit(server, "--wait")
    assert server.count(GET) == 1


def test_interrupted_wait_says_how_to_follow_and_how_to_end_the_run(server, submit, capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "sleep", interrupt)
    with pytest.raises(SystemExit) as stopped:
        submit(server, "--wait")
    (run,) = server.state.runs
    assert stopped.value.code == 130
    assert capsys.readouterr().err == (
        f"pipelines.submit: interrupted: the run goes on: --watch {run['run_id']} follows it, "
        f"--terminate {run['run_id']} ends it\n"
    )


@pytest.mark.parametrize("fault", [{}, {"drop": "after"}, {"drop": "before"}, {"status": 429}], ids=str)
def test_failed_run_goes_on_where_it_stopped(server, submit, tend, capsys, fault):
    server.state.fails_at = "train"
    submit(server, "--wait")
    (run,) = server.state.runs
    server.fail("RunService_RetryRun", **fault)
    assert tend(server, "--retry", run["run_id"], "--wait") == 0
    assert f"run {run['run_id']} goes on\n" in capsys.readouterr().out
    assert len(server.state.runs) == 1


@pytest.mark.parametrize("state", ["RUNNING", "SUCCEEDED"])
def test_run_that_has_not_failed_is_not_tried_again(server, tend, run, state):
    run["state"] = state
    with pytest.raises(AvaError, match=rf"--retry {run['run_id']}: is {state}: only a run that FAILED or was CANCELED"):
        tend(server, "--retry", run["run_id"])
    assert server.count("RunService_RetryRun") == 0


@pytest.mark.parametrize("fault", [{}, {"drop": "after"}, {"drop": "before"}, {"status": 503}], ids=str)
def test_running_run_is_terminated(server, tend, run, capsys, fault):
    server.fail("RunService_TerminateRun", **fault)
    assert tend(server, "--terminate", run["run_id"], "--wait") == 0
    assert run["state"] == "CANCELED"
    assert capsys.readouterr().out.endswith(f"run {run['run_id']} CANCELED\n")


def test_run_that_has_ended_is_not_terminated(server, tend, run, capsys):
    run["state"] = "SUCCEEDED"
    assert tend(server, "--terminate", run["run_id"]) == 0
    assert capsys.readouterr().out.endswith(f"run {run['run_id']} had already ended: SUCCEEDED\n")
    assert server.count("RunService_TerminateRun") == 0


@pytest.mark.parametrize("flag", ["--watch", "--retry", "--terminate"])
def test_run_that_is_not_there_is_named(server, tend, flag):
    with pytest.raises(AvaError, match=r": 404 NOT FOUND: run_id nowhere not found$"):
        tend(server, flag, "nowhere")
