"""`ava train` as several processes: started by itself, and by torchrun, with one output and no process that waits."""

import json
import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from ava_core.config.hardware import usable_cores
from ava_core.runtime import manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(usable_cores() < 2, reason="two processes need two cores"),
]
TOLERANCE = 1e-4
"""Nats per token between 1 and 2 processes at the same global batch in float32: only the order of sums differs."""
TRAIN = {"precision": "fp32", "micro_batch_size": 1}


@pytest.fixture
def command(tmp_path, tiny_shards, make_params):
    def make(name, **train):
        params = make_params(threads=2, train={**TRAIN, **train}, model={"balance_loss_weight": 0.0})
        flags = ["--params", str(params), "--shards", str(tiny_shards), "--output", str(tmp_path / name), "--quiet"]
        return ["-m", "ava_core.cli.main", "train", *flags, "--work", str(tmp_path / "work")]

    return make


def _ava(command):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=400, check=False)


def _torchrun(command, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=400, check=False)


def _ranks(command, processes=2):
    """Both processes by hand, so that each one's exit code is seen; a launcher would end the second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate(timeout=400)[1] for process in started]
    return [process.returncode for process in started], outputs


def _figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_two_processes_train_the_model_of_one(command, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        done = _ava(command(name, processes=processes))
        assert done.returncode == 0, done.stderr
    one, two = _figures(tmp_path / "one"), _figures(tmp_path / "two")
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=TOLERANCE)
    assert two["tokens_seen"] == one["tokens_seen"]
    assert [manifest.verify(tmp_path / name).ranks for name in ("one", "two")] == [1, 2]
    rows = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("one", "two")]
    for a, b in zip(*([json.loads(line)["train_loss"] for line in lines] for lines in rows), strict=True):
        assert b == pytest.approx(a, abs=TOLERANCE)
    assert (
        load_file(tmp_path / "two" / "model.safetensors").keys()
        == load_file(tmp_path / "one" / "model.safetensors").keys()
    )


def test_torchrun_makes_one_output_and_reuses_it(command, tmp_path):
    started_by_ava = _ava(command("own", processes=2))
    assert started_by_ava.returncode == 0, started_by_ava.stderr
    (tmp_path / "work").rename(tmp_path / "old-work")  # or the output would be taken from there
    done = _torchrun(command("model", processes=2))
    assert done.returncode == 0, done.stderr
    key = manifest.verify(tmp_path / "model").key
    assert key == manifest.verify(tmp_path / "own").key
    # However they were started, the same work gives the same bytes.
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "model")]
    assert weights[0] == weights[1]
    again = _torchrun(command("model", processes=2))
    assert again.returncode == 0, again.stderr
    assert "up to date" in again.stderr
    codes, outputs = _ranks(command("copy", processes=2))
    assert codes == [0, 0], outputs
    assert "unchanged: the finished output was taken from" in outputs[0]


def test_failure_before_the_training_ends_all_ranks_with_the_same_code(command, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "something").write_text("of the user")
    codes, outputs = _ranks(command("model", processes=2))
    assert codes == [2, 2], outputs
    assert "exists and is not a finished output" in outputs[0]
    assert "something" not in outputs[1]


def test_other_number_of_processes_than_configured_is_refused(command):
    codes, outputs = _ranks(command("model", processes=1))
    assert codes == [2, 2], outputs
    for output in outputs:
        assert output.strip() == (
            "ava: environment: 2 processes were started, but train.processes = 1 makes 1: start 1, or change"
            " train.processes"
        )
