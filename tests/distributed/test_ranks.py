"""A process's rank from its launcher's variables, and what processes say to each other."""

import json
import socket
import subprocess
import sys

import pytest

from ava_core.distributed.group import require_devices
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError

MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, Ranks(0, 0, 1)),
        ({"MASTER_ADDR": "10.0.0.1", "PATH": "/bin"}, Ranks(0, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Ranks(0, 0, 1)),
        (TORCH | MASTER, Ranks(3, 1, 4)),
        (TORCH | MASTER | {"LOCAL_WORLD_SIZE": "2"}, Ranks(3, 1, 4, 2)),
        (TORCH | MASTER | {"LOCAL_SIZE": "2"}, Ranks(3, 1, 4, 2)),
        (OPEN_MPI | MASTER, Ranks(3, 1, 4)),
        (OPEN_MPI | MASTER | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Ranks(3, 1, 4, 2)),
        (MPICH | MASTER | {"MPI_LOCALNRANKS": "2"}, Ranks(3, 1, 4, 2)),
        (TORCH | OPEN_MPI | MASTER, Ranks(3, 1, 4)),
    ],
)
def test_place_from_the_variables_of_each_launcher(environment, ranks):
    assert Ranks.from_environment(environment) == ranks


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"RANK": "0"}, ["WORLD_SIZE and LOCAL_RANK must be set beside RANK"]),
        ({"RANK": "0", "WORLD_SIZE": "2", **MASTER}, ["LOCAL_RANK must be set beside RANK and WORLD_SIZE"]),
        ({"PMI_SIZE": "2"}, ["PMI_RANK and MPI_LOCALRANKID must be set beside PMI_SIZE"]),
        (TORCH, ["MASTER_ADDR and MASTER_PORT must be set for 4 processes"]),
        (TORCH | {"MASTER_ADDR": "a"}, ["MASTER_PORT must be set"]),
        (TORCH | {"MASTER_ADDR": "", "MASTER_PORT": "1"}, ["MASTER_ADDR must be set"]),
        (TORCH | MASTER | {"RANK": "one"}, ["RANK = 'one'", ">= 0"]),
        (TORCH | MASTER | {"RANK": "-1"}, ["RANK = '-1'"]),
        (TORCH | MASTER | {"RANK": "4"}, ["RANK = 4", "LOCAL_RANK <= RANK < WORLD_SIZE"]),
        (TORCH | MASTER | {"WORLD_SIZE": "0"}, ["WORLD_SIZE = 0"]),
        (TORCH | MASTER | {"LOCAL_RANK": "4"}, ["LOCAL_RANK = 4"]),
        (TORCH | MASTER | OPEN_MPI | {"RANK": "2"}, ["RANK = 2", "contradict", "OMPI_COMM_WORLD_RANK = 3"]),
        (OPEN_MPI | MASTER | MPICH | {"PMI_SIZE": "8"}, ["contradict", "PMI_SIZE = 8"]),
    ],
)
def test_partial_and_contradictory_variables_are_refused_by_name(environment, parts):
    with pytest.raises(ConfigError) as caught:
        Ranks.from_environment(environment)
    assert len(caught.value.faults) == 1
    for part in ["environment: ", *parts]:
        assert part in str(caught.value)


def test_process_alone_hears_only_itself():
    ranks = Ranks()
    assert ranks.is_first
    assert ranks.mean({"loss": 2.5}) == {"loss": 2.5}
    assert ranks.any(True) and not ranks.any(False)
    assert ranks.broadcast_object("x") == "x"
    ranks.barrier()


def test_more_processes_than_devices_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr("ava_core.distributed.group.usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_devices(2)
    with pytest.raises(ConfigError, match=r"^train\.processes = 3: this machine has 2 usable cores and no GPU: use at"):
        require_devices(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^train\.processes = 2: this machine has 1 GPUs: "):
        require_devices(2)


PROGRAM = """
import json, sys
from ava_core.distributed import group as module
from ava_core.distributed.group import connect
from ava_core.distributed.peers import LostPeer
from ava_core.distributed.ranks import Ranks

module.usable_cores = lambda: 2
ranks = Ranks.from_environment()
connect(ranks)
connect(ranks)
figures = {"b": ranks.rank, "a": 0.1} if ranks.rank else {"a": 0.2, "b": ranks.rank}
said = {
    "mean": ranks.mean(figures),
    "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
    "object": ranks.broadcast_object({"from": ranks.rank}),
}
ranks.barrier()
print(json.dumps(said), flush=True)
if ranks.rank == 0:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
try:
    ranks.barrier()
except LostPeer as error:
    print(json.dumps(str(error)), flush=True)
"""


@pytest.mark.slow
def test_two_processes_agree_and_a_dead_one_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(rank, port),
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=250)[0].splitlines() for process in processes)
    said = json.loads(first[0])
    assert json.loads(second[0]) == said
    assert said == {
        "mean": {"a": (0.2 + 0.1) / 2, "b": 0.5},
        "any": [True, False],
        "object": {"from": 0},
    }
    lost = json.loads(second[1])
    assert lost.startswith(f"rank 1 lost the connection to rank 0 on {socket.gethostname()}: ")
    assert "127.0.0.1" in lost and "pair.cc" not in lost


def _environment(rank, port):
    import os

    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
