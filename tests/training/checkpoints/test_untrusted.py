"""A checkpoint from someone else: whatever lies in it, with digests that match, nothing of it is run."""

import json
import os
import subprocess
import sys
from enum import Enum

import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import IntegrityError
from ava_core.runtime.digests import digest_file, digest_value
from ava_core.training.checkpoints import CheckpointFolder, resume_from
from ava_core.training.checkpoints.folder import ENGINE, checkpoints_in
from ava_core.training.checkpoints.reading import read_tensors
from ava_core.training.checkpoints.writing import copied
from tests.training.checkpoints.zero_worker import IDENTITY, build, train_half

ALONE = Ranks()
KINDS = {
    "model": f"{ENGINE}/*mp_rank_00_model_states.pt",
    "optimizer": f"{ENGINE}/*optim_states.pt",
    "rank": "rank-00000.pt",
}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mknod, (str(self.mark),)


def plant(checkpoint, pattern, mark):
    """Put a call into one kind of file, and give every digest that says what the file was."""
    [path] = checkpoint.glob(pattern)
    torch.save({**torch.load(path, weights_only=False), "extra": Malicious(mark)}, path)
    return rewrite_digests(checkpoint, path)


def rewrite_digests(checkpoint, path):
    record_path = checkpoint / "checkpoint.json"
    record = json.loads(record_path.read_text())
    del record["digest"]
    record["files"][path.relative_to(checkpoint).as_posix()] = digest_file(path)
    record_path.write_text(json.dumps({**record, "digest": digest_value(record)}))
    return path


def refused(path):
    return pytest.raises(IntegrityError, match=rf"{path}: holds posix\.mknod, which could run code: [^\n]*$")


@pytest.mark.parametrize(
    ("kind", "source", "stage"),
    [("model", 0, 0), ("rank", 0, 0), ("optimizer", 1, 1), ("model", 0, 2), ("optimizer", 1, 0), ("rank", 1, 0)],
)
def test_code_in_a_file_of_a_checkpoint_is_refused_and_not_run(tmp_path, kind, source, stage):
    """Of the engine's own stage and of another one, which reads the files by other ways."""
    train_half(tmp_path, source, ALONE)
    [checkpoint] = checkpoints_in(tmp_path / f"r1-s{source}")
    path = plant(checkpoint.folder, KINDS[kind], tmp_path / "ran")
    engine, config = build(stage, ALONE), TrainConfig(zero_stage=stage)
    checkpoint.verify()  # the digests say that all is well
    with refused(path):
        resume_from(engine, tmp_path / f"r1-s{source}", IDENTITY, ALONE, config)
    with refused(path):  # as a killed run finds its own, in a work folder that others can write to
        CheckpointFolder(tmp_path / f"r1-s{source}", config, ALONE, IDENTITY).restore(engine)
    assert not (tmp_path / "ran").exists()


def test_class_that_deepspeed_pickles_takes_only_values(tmp_path):
    """What is let through can't be made to call anything: neither by its arguments nor by its attributes."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = LossScaler(2.0)
    torch.save({"scaler": scaler, "fragment": fragment_address(3, 4)}, tmp_path / "plain.pt")
    found = read_tensors(tmp_path / "plain.pt")
    assert (found["scaler"].cur_scale, found["fragment"].numel, found["fragment"].start) == (2.0, 3, 4)
    scaler.update_scale = Malicious(tmp_path / "ran")
    torch.save({"scaler": scaler}, tmp_path / "planted.pt")
    with refused(tmp_path / "planted.pt"):
        read_tensors(tmp_path / "planted.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(64), b"\x80\x04cposix\nmknod\n."])
def test_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "rank-00000.pt"
    path.write_bytes(content)
    with pytest.raises(
        IntegrityError, match=r"rank-00000\.pt: (can't be read|holds) [^\n]*the checkpoint is not used$"
    ):
        read_tensors(path)


def test_file_that_the_record_does_not_list_is_refused(tmp_path):
    """DeepSpeed's files are found by patterns, so one more of them could be taken for the right one."""
    train_half(tmp_path, 0, ALONE)
    [checkpoint] = checkpoints_in(tmp_path / "r1-s0")
    added = checkpoint.folder / ENGINE / "a_mp_rank_00_model_states.pt"
    added.write_bytes(b"anything")
    with pytest.raises(IntegrityError, match=rf"{added}: is not in checkpoint\.json: the checkpoint is not used"):
        checkpoint.verify()


@pytest.mark.parametrize("field", ["step", "ranks", "zero_stage", "tokens_seen", "identity", "files", "windows"])
def test_record_without_a_field_is_refused_in_one_line(tmp_path, field):
    train_half(tmp_path, 0, ALONE)
    [checkpoint] = checkpoints_in(tmp_path / "r1-s0")
    path = checkpoint.folder / "checkpoint.json"
    record = json.loads(path.read_text())
    del record[field], record["digest"]
    path.write_text(json.dumps({**record, "digest": digest_value(record)}))
    with pytest.raises(IntegrityError, match=rf"checkpoint\.json: {field}: is missing or no .*: [^\n]*$"):
        checkpoint.verify()


@pytest.mark.slow
def test_ava_train_ends_with_one_line_and_1(tmp_path, tiny_shards, make_params):
    def train(name, *flags, **changes):
        params = make_params(train={"keep_checkpoint_every": 2, **changes})
        common = ["--shards", tiny_shards, "--params", params, "--work", tmp_path / "work", "--output", tmp_path / name]
        command = [sys.executable, "-m", "ava_core.cli.main", "train", "--quiet", "--log-level", "error"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AVA_", "MLFLOW_"))}
        words = [str(word) for word in (*command, *common, *flags)]
        return subprocess.run(words, env=clean, cwd=tmp_path, capture_output=True, text=True)

    assert train("whole").returncode == 0
    [kept] = tmp_path.glob("work/train/*/kept/checkpoints/step-00000004")
    path = plant(kept, KINDS["model"], tmp_path / "ran")
    ended = train("branch", "--resume", kept, steps=8)
    assert ended.returncode == 1
    assert ended.stderr == f"ava: {path}: holds posix.mknod, which could run code: the checkpoint is not used\n"
    assert not (tmp_path / "ran").exists()


class Stage(int, Enum):
    """As DeepSpeed's ZeroStageEnum, pickled as Python 3.11.0 to 3.11.3 pickle enumerations."""

    WEIGHTS = 3

    def __reduce_ex__(self, protocol):
        return getattr, (Stage, self.name)


def test_checkpoint_of_another_python_is_read_though_that_pickles_enumerations_by_a_call(tmp_path):
    state = {"zero_stage": Stage.WEIGHTS, "both": [Stage.WEIGHTS, (Stage.WEIGHTS, 0.5)]}
    torch.save(state, tmp_path / "as_it_is.pt")
    with pytest.raises(IntegrityError, match="could run code"):
        read_tensors(tmp_path / "as_it_is.pt")
    torch.save(copied(state), tmp_path / "copied.pt")
    read = read_tensors(tmp_path / "copied.pt")
    assert read == {"zero_stage": 3, "both": [3, (3, 0.5)]} and type(read["zero_stage"]) is int
