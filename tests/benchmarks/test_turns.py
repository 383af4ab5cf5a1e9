"""Workers work one at a time, wait without using the processor, and don't outlive their controller."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.turns import ROOT, Workers, take_turns

FACTORY = "tests.benchmarks.counting_subject:Counting"
CONTROLLER = f"""
import sys, time
from benchmarks.turns import Workers
subjects = [(name, "{FACTORY}", {{"name": name, "journal": sys.argv[1]}}) for name in "ab"]
with Workers(subjects) as workers:
    print(*(worker.pid for worker in workers.alive.values()), flush=True)
    workers.ask_each("turn", steps=int(sys.argv[2]))
"""


def subject(name: str, folder: Path, **arguments):
    return name, FACTORY, {"name": name, "journal": str(folder / "journal"), **arguments}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_for(seconds: float, pid: int) -> bool:
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return cpu_seconds(pid) - before <= 0.01


def is_gone(pid: int, seconds: float = 100) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # ended; a killed controller's children wait for init to collect them
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_only_one_works_at_a_time_and_in_order(tmp_path):
    with Workers([subject("a", tmp_path), subject("b", tmp_path)]) as workers:
        turns = take_turns(workers, rounds=2, warmup=1, steps=3)
    one_round = ["a begins", "a ends", "b begins", "b ends"]
    assert (tmp_path / "journal").read_text().splitlines() == one_round * 3
    assert turns == {name: [{"turn": 2}, {"turn": 3}] for name in "ab"}


@pytest.mark.parametrize(("fails_at", "reason"), [(2, "RuntimeError: broke in its turn"), (-1, "ValueError: never")])
def test_a_subject_that_fails_is_named_and_the_others_go_on(tmp_path, fails_at, reason):
    with Workers([subject("bad", tmp_path, fails_at=fails_at), subject("good", tmp_path)]) as workers:
        turns = take_turns(workers, rounds=3, warmup=0, steps=1)
    assert [answer["turn"] for answer in turns["good"]] == [1, 2, 3]
    assert "bad" not in turns
    assert reason in workers.failures["bad"]


def test_a_process_that_ends_is_reported_with_its_code(tmp_path):
    with Workers([subject("a", tmp_path)]) as workers:
        assert workers.ask_each("leave") == {}
    assert workers.failures == {"a": "a: the process ended with code 7"}


def test_waiting_uses_no_processor_time(tmp_path):
    with Workers([subject("a", tmp_path)]) as workers:
        workers.ask_each("turn", steps=1)
        assert any(idle_for(0.3, workers.alive["a"].pid) for _ in range(100)), "it may be ending its turn at first"


def test_workers_end_when_the_controller_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), Workers([subject("a", tmp_path), subject("b", tmp_path)]) as workers:
        pids = [worker.pid for worker in workers.alive.values()]
        raise ZeroDivisionError
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_controller(tmp_path, how):
    """Ctrl-C reaches the whole group; a killed controller only closes their input."""
    arguments = [sys.executable, "-c", CONTROLLER, str(tmp_path / "journal"), "1500"]
    controller = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    pids = [int(pid) for pid in controller.stdout.readline().split()]
    assert len(pids) == 2
    assert {os.getpgid(pid) for pid in pids} == {controller.pid}
    if how == signal.SIGINT:
        os.killpg(controller.pid, how)
    else:
        controller.send_signal(how)
    controller.wait(timeout=200)
    controller.stdout.close()
    assert all(is_gone(pid) for pid in pids)
