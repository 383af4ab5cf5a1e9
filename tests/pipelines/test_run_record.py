"""However a run ends, its outcome is written and nothing of it is left running; a killed runner's by the next run."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import pytest

from pipelines import local
from pipelines.run_record import RunRecord, find_left, is_going_on
from pipelines.runner import LocalRunner
from tests.pipelines.test_runner import gone, interrupt


def outcomes(fake) -> list[dict]:
    """What the exit handler was told, call by call."""
    return [json.loads(e["flags"]["status"]) for e in fake.journal if e["component"] == "record-outcome"]


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")])
def test_interrupted_run_is_recorded_as_cancelled_with_its_step(host, ir, number, word):
    interrupt(host, ir, number, "host", "train=hang")
    (told,) = outcomes(host)
    assert told == {"state": "CANCELLED", "pipelineTaskName": "train", "error": {"message": word}}
    (run,) = (host.folder / "runs").glob("ava-*")
    assert host.journal[-1]["environment"]["AVA_PIPELINE_RUN"] == run.name
    assert (run / "record-outcome" / "outcome").is_dir() and not is_going_on(run)


def test_run_in_which_the_exit_handler_could_not_run_is_recorded_as_failed(host, monkeypatch):
    real = LocalRunner.run_task

    def broken(self, image, command, variables):
        if "record-outcome" in command:
            raise IndexError("list index out of range")
        return real(self, image, command, variables)

    monkeypatch.setattr(LocalRunner, "run_task", broken)
    result = host.run()
    assert not result.succeeded and "list index out of range" in result.fault
    (told,) = outcomes(host)
    assert told["state"] == "FAILED" and "list index out of range" in told["error"]["message"]


def mend(host) -> None:
    server: Future[str] = Future()
    server.set_result("http://127.0.0.1:1")
    local.mend_left(host.folder / "runs", host.runner(), server).join(60)


def test_killed_run_is_ended_and_recorded_by_the_next_one(host, ir):
    answer = interrupt(host, ir, signal.SIGKILL, "host", "train=hang")
    assert answer.returncode == -signal.SIGKILL and outcomes(host) == []
    pids = host.journal[-1]["pid"], int((host.folder / "child.pid").read_text())
    assert not any(gone(pid, seconds=0.2) for pid in pids), "the kill was to leave the step running"
    mend(host)
    assert all(gone(pid) for pid in pids)
    (told,) = outcomes(host)
    assert told["state"] == "CANCELLED" and told["pipelineTaskName"] == "train"
    assert "killed" in told["error"]["message"]
    assert list(find_left(host.folder / "runs")) == []
    mend(host)
    assert len(outcomes(host)) == 1, "it is mended once"


def test_run_that_is_going_on_is_left_alone_and_kept(tmp_path):
    for minute in range(12):
        (tmp_path / f"ava-2026-01-01-00-{minute:02}").mkdir()
    running = tmp_path / "ava-2026-01-01-00-00"
    RunRecord(running).note("train", {"pid": os.getpid(), "started": "1"})
    assert list(find_left(tmp_path)) == []
    assert running not in local.prune_runs(tmp_path) and running.is_dir()


def test_process_with_a_recycled_number_is_not_ended(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        run = tmp_path / "ava-2026-01-01"
        run.mkdir()
        record = {"runner": {"pid": other.pid, "started": "1"}, "tasks": {"train": {"pid": other.pid, "started": "1"}}}
        (run / "runner.json").write_text(json.dumps(record))
        (left,) = find_left(tmp_path)
        left.end_tasks()
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0


@pytest.mark.slow
def test_container_of_a_killed_run_is_removed_by_the_next_one(docker, fake_image, ir, containers):
    interrupt(docker, ir.replace("ava-moe:cpu", fake_image), signal.SIGKILL, "docker", "train=hang")
    assert len(containers(docker)) == 1
    mend(docker)
    assert containers(docker) == []
    assert [told["state"] for told in outcomes(docker)] == ["CANCELLED"]
