"""An error keeps its class, exit code and lines on its way to another process."""

import json

import pytest

from ava_core.distributed.peers import LostPeer
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.launching import failures
from ava_core.training.memory.out_of_memory import OutOfMemory


@pytest.mark.parametrize(
    ("error", "kind", "rebuilt", "message"),
    [
        (ConfigError("a", "b"), "config", ConfigError, "a\nb"),
        (IntegrityError("x: changed"), "integrity", IntegrityError, "x: changed"),
        (OutOfMemory("DefaultCPUAllocator: 8 bytes"), "out_of_memory", OutOfMemory, "rank 1: DefaultCPUAllocator"),
        (AvaError("step 3: nan"), "error", AvaError, "rank 1: step 3: nan"),
        (LostPeer("gone"), "lost_peer", AvaError, "rank 1: gone"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"), "lost_peer", AvaError, "rank 1: "),
        (RuntimeError("shapes\nof two lines"), "defect", AvaError, "the training process of rank 1 failed: RuntimeErr"),
        (ZeroDivisionError(), "defect", AvaError, "the training process of rank 1 failed: ZeroDivisionError"),
    ],
)
def test_error_survives_the_way(tmp_path, error, kind, rebuilt, message):
    failures.write(tmp_path, error, rank=1)
    assert json.loads((tmp_path / "failure-rank-1.json").read_text())["kind"] == kind
    (failure,) = failures.read(tmp_path).values()
    again = failures.rebuild(failure)
    assert type(again) is rebuilt
    assert str(again).startswith(message)
    assert failure["exit_code"] == getattr(error, "exit_code", 1)
    if kind != "config":
        assert "\n" not in str(again)
