"""DeepSpeed's op for shared memory: never compiled by a training, used where it is built, and right."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ava_core.config.hardware import cpu_flags, usable_cores
from ava_core.distributed import shared_memory_op
from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.distributed.ranks import Ranks


@pytest.fixture
def deepspeed(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_SIZE", "1")
    return SimpleNamespace(ops=SimpleNamespace(__compatible_ops__={shared_memory_op.NAME: True}))


@pytest.mark.parametrize(
    "ranks", [Ranks(), Ranks(0, 0, 2), Ranks(0, 0, 4, 2)], ids=["alone", "unknown", "two machines"]
)
def test_op_is_off_unless_all_processes_are_on_one_machine(deepspeed, monkeypatch, ranks):
    monkeypatch.setattr(shared_memory_op, "_load", lambda: pytest.fail("it must not be looked for"))
    assert not shared_memory_op.choose(deepspeed, ranks)
    assert deepspeed.ops.__compatible_ops__ == {shared_memory_op.NAME: False}


def test_with_a_gpu_deepspeed_is_not_made_to_try_its_ops(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not shared_memory_op.choose(None, Ranks(0, 0, 2, 2))


def test_op_that_is_not_built_is_said_once_and_not_built(deepspeed, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    import_deepspeed()
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(OpBuilder, "jit_load", lambda *_, **__: pytest.fail("it must not be compiled"))
    monkeypatch.setattr(Ranks, "any", lambda self, flag: flag)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    caplog.set_level("INFO")
    assert not shared_memory_op.choose(deepspeed, Ranks(1, 1, 2, 2))
    assert not caplog.messages
    assert not shared_memory_op.choose(deepspeed, Ranks(0, 0, 2, 2))
    (message,) = {record.getMessage() for record in caplog.records if record.name.startswith("ava_core")}
    assert "is not built" in message and "python -m ava_core.distributed.shared_memory_op" in message
    assert deepspeed.ops.__compatible_ops__ == {shared_memory_op.NAME: False}
    shared_memory_op.library_path().write_bytes(b"no library")
    assert not shared_memory_op.choose(deepspeed, Ranks(0, 0, 2, 2))
    assert "can't be loaded" in caplog.messages[-1]


def test_build_of_other_versions_is_another_file(deepspeed, monkeypatch, tmp_path):
    ours = shared_memory_op.library_path()
    assert ours.parent == tmp_path and torch.__version__ in ours.name
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert shared_memory_op.library_path() != ours


@pytest.mark.parametrize(
    ("tensor", "changes", "level", "through_op"),
    [
        (torch.ones(3), {}, 1, True),
        (torch.ones(3), {}, 0, False),
        (torch.ones(3, dtype=torch.bfloat16), {}, 2, True),
        (torch.ones(3, dtype=torch.bfloat16), {}, 1, False),  # its kernel would fault
        (torch.ones(3, dtype=torch.float64), {}, 2, False),
        (torch.ones(3, dtype=torch.int32), {}, 2, False),
        (torch.ones(3, 2).T, {}, 2, False),
        (torch.ones(3), {"group": 1}, 2, False),
        (torch.ones(3), {"group": 2}, 2, True),
        (torch.ones(3), {"async_op": True}, 2, False),
        (torch.ones(3), {"op": torch.distributed.ReduceOp.MAX}, 2, False),
        (torch.ones(3), {"op": torch.distributed.ReduceOp.SUM}, 2, True),
    ],
)
def test_only_sums_that_the_op_can_do_go_through_it(monkeypatch, tensor, changes, level, through_op):
    import_deepspeed()
    calls = []
    op = SimpleNamespace(inference_all_reduce_=lambda tensor: calls.append("op"))
    monkeypatch.setitem(torch.ops.__dict__, "deepspeed", op)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: group or 2)
    backend = SimpleNamespace(shm_vector_kernel_level=level, all_reduce=lambda *_: calls.append("gloo"))
    shared_memory_op.use_for_all_reduce(backend)
    backend.all_reduce(tensor, **changes)
    assert calls == ["op" if through_op else "gloo"]


PROGRAM = """
import json, os, torch
from torch import distributed
from ava_core.distributed.group import connect
from ava_core.distributed.ranks import Ranks

ranks = Ranks.from_environment()
connect(ranks)
import deepspeed

calls = []
op = torch.ops.deepspeed.inference_all_reduce_
torch.ops.deepspeed.__dict__["inference_all_reduce_"] = lambda tensor: calls.append(tensor.dtype) or op(tensor)
same = []
for dtype in (torch.float32, torch.bfloat16):
    for size in (1, 1000, 3_000_001):
        torch.manual_seed(ranks.rank)
        own = torch.randn(size).to(dtype)
        through_op, through_gloo = own.clone(), own.clone()
        deepspeed.comm.all_reduce(through_op)
        distributed.all_reduce(through_gloo)
        same.append(torch.equal(through_op, through_gloo) and not torch.equal(through_op, own))
print(json.dumps({"same": same, "calls": len(calls)}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(usable_cores() < 2 or not shutil.which("g++"), reason="needs two cores and g++")
def test_built_op_gives_the_bits_of_gloo_to_two_processes(tmp_path):
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    build = [sys.executable, "-m", "ava_core.distributed.shared_memory_op"]
    built = subprocess.run(build, env=environment, capture_output=True, text=True, check=True)
    again = subprocess.run(build, env=environment, capture_output=True, text=True, check=True)
    assert built.stdout == again.stdout
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Neither ninja nor a compiler is there when it is used.
    environment |= {"PATH": "/nowhere", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    through_op = 6 if "avx512f" in cpu_flags() else 3  # with AVX2 alone, float32 only
    for process in processes:
        assert json.loads(process.communicate(timeout=200)[0]) == {"same": [True] * 6, "calls": through_op}
