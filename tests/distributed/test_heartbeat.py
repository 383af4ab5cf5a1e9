"""A machine that falls silent is named and ends the training; one that only was slow, or has finished, doesn't."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ava_core.distributed import heartbeat
from ava_core.distributed.heartbeat import Heartbeat
from ava_core.distributed.peers import LostPeer
from ava_core.launching import mpi

MACHINES = {0: "first", 2: "second", 4: "third"}


class Counters:
    """What of a store is used; `hang` makes every call wait."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.lock = threading.Lock()
        self.answers = threading.Event()
        self.answers.set()

    def add(self, key: str, amount: int) -> int:
        self.answers.wait()
        with self.lock:
            self.values[key] = self.values.get(key, 0) + amount
            return self.values[key]


@pytest.fixture
def quick(monkeypatch):
    """Times a hundred times shorter; gives the list of what was lost."""
    for name in ("EVERY_SECONDS", "WARN_SECONDS", "LOST_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(heartbeat, name, getattr(heartbeat, name) / 100)
    lost: list[LostPeer] = []
    monkeypatch.setattr(heartbeat, "when_lost", lost.append)
    return lost


def run(ranks, store, seconds, lost=()):
    """Heartbeats of these ranks for so long, or until one has been lost."""
    beats = [Heartbeat(rank, MACHINES, lambda: store) for rank in ranks]
    for beat in beats:
        beat.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not lost:
        time.sleep(0.01)
    for beat in beats:
        beat.stop()


def test_machines_that_count_are_left_alone(quick):
    run(MACHINES, Counters(), 2 * heartbeat.LOST_SECONDS, quick)
    assert quick == []


def test_silent_machine_is_named_in_the_log_and_then_lost(quick, caplog):
    with caplog.at_level(logging.WARNING, logger="ava_core"):
        run((0, 2), Counters(), 60, quick)
    assert str(quick[0]).startswith("rank 4 on third has given no sign of life for ")
    assert "run the same command again" in str(quick[0])
    assert [record.message.partition(" has")[0] for record in caplog.records][:1] == ["rank 4 on third"]


@pytest.mark.slow
def test_store_that_does_not_answer_is_the_loss_of_rank_0(quick):
    store = Counters()
    store.answers.clear()
    run((4,), store, 60, quick)
    store.answers.set()
    assert str(quick[0]).startswith("rank 0 on first has given no sign of life")


def test_store_that_has_gone_is_the_loss_of_rank_0(quick):
    class Gone:
        def add(self, key, amount):
            raise RuntimeError("Broken pipe")

    run((2,), Gone(), 60, quick)
    assert str(quick[0]).startswith("rank 0 on first")


def test_who_has_stopped_watching_loses_nobody(quick):
    run((0,), Counters(), heartbeat.LOST_SECONDS / 2, quick)
    time.sleep(heartbeat.LOST_SECONDS)
    assert quick == []


def test_mpirun_loses_its_patience_first():
    assert mpi.SILENCE_SECONDS < heartbeat.LOST_SECONDS


PROGRAM = """
import logging, os, signal, sys
from ava_core.launching import mpi
from ava_core.distributed import heartbeat
from ava_core.distributed.group import connect, disconnect
from ava_core.distributed.ranks import Ranks

logging.basicConfig(level=logging.WARNING, format="%(message)s")
heartbeat.EVERY_SECONDS, heartbeat.WARN_SECONDS, heartbeat.LOST_SECONDS = 0.5, 2.0, 6.0
ranks = Ranks.from_environment()
connect(ranks)
ranks.barrier()
if ranks.rank == int(sys.argv[1]):
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
ranks.barrier()
if sys.argv[2:]:
    disconnect()
    if ranks.rank == 1:
        import time
        time.sleep(8)
"""


@pytest.fixture
def start():
    """Two processes, each as if on a machine of its own; all have ended when the test has."""
    processes = []

    def call(*arguments):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        for rank in range(2):
            environment = os.environ | master | {"RANK": str(rank), "WORLD_SIZE": "2"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command = [sys.executable, "-c", PROGRAM, *arguments]
            processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes

    yield call
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stopped", [0, 1])
def test_rank_waiting_in_an_exchange_ends_when_the_other_machine_is_silent(start, stopped):
    """SIGSTOP, for a machine without power: the connections stay open, and nothing comes through them."""
    processes = start(str(stopped))
    assert processes[stopped].stdout.readline() == "stopping\n"
    _, printed = processes[1 - stopped].communicate(timeout=250)
    assert processes[1 - stopped].returncode == 1
    assert f"rank {stopped} on {socket.gethostname()} has given no sign of life for 6 s: the training ends" in printed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_process_that_ends_after_the_work_is_missed_by_nobody(start):
    processes = start("-1", "disconnect")
    assert [process.wait(200) for process in processes] == [0, 0]
