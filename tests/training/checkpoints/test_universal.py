"""Going on at another ZeRO stage or on another number of ranks: the weights are those of a run that never changed.

Tolerance: 1e-6 in weights of about 1 after 4 further steps at a rate of 0.01, in float32. Ranks and stages sum
gradients in another order (measured: 9e-8); the state itself is carried over to the bit, as the tests against
DeepSpeed's own tool show.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError
from ava_core.training.checkpoints import check_resume
from ava_core.training.checkpoints.folder import checkpoints_in
from ava_core.training.checkpoints.universal import SavedState, load_converted
from tests.training.checkpoints.zero_worker import (
    HALF,
    IDENTITY,
    STAGES,
    WHOLE,
    advance,
    build,
    other_stage,
    resumed,
    train_half,
    weights,
)

ALONE = Ranks()
TOLERANCE = 1e-6


def distance(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def trained(stage, **options):
    engine = build(stage, ALONE, **options)
    advance(engine, ALONE, 0, WHOLE)
    return weights(engine)


def test_stage_0_goes_on_at_stage_2_and_back(tmp_path):
    whole = trained(0, dropout=False)
    for stage, source in ((2, 0), (0, 2)):
        train_half(tmp_path, source, ALONE, dropout=False)
        assert distance(resumed(tmp_path, stage, ALONE, source, 1, dropout=False), whole) < TOLERANCE


def test_parameter_that_the_checkpoint_lacks_is_named(tmp_path):
    train_half(tmp_path, 1, ALONE)
    [checkpoint] = checkpoints_in(tmp_path / "r1-s1")
    engine = build(0, ALONE)
    engine.deepspeed.module.last.extra = torch.nn.Parameter(torch.zeros(2))
    engine.deepspeed.optimizer.add_param_group({"params": [engine.deepspeed.module.last.extra]})
    with pytest.raises(AvaError, match=r"step-00000004: has no parameter last\.extra"):
        load_converted(engine.deepspeed, checkpoint)


def test_offloaded_state_is_not_converted(tmp_path):
    train_half(tmp_path, 1, ALONE)
    with pytest.raises(ConfigError, match=r"is of ZeRO stage 1 on 1 ranks: going on at stage 2 on 1 needs .*offload"):
        check_resume(tmp_path / "r1-s1", IDENTITY, TrainConfig(zero_stage=2, offload="optimizer"), ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_n_and_n_steps_are_2n_steps_to_the_bit_at_each_stage(tmp_path, stage):
    torch.manual_seed(1)
    engine = build(stage, ALONE)
    torch.manual_seed(1)
    advance(engine, ALONE, 0, WHOLE)
    train_half(tmp_path, stage, ALONE, seed=1)
    again = resumed(tmp_path, stage, ALONE, stage, 1)
    assert distance(again, weights(engine)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_goes_on_at_every_stage(tmp_path, stage):
    whole = trained(stage, dropout=False)
    for source in STAGES:
        train_half(tmp_path, source, ALONE, dropout=False)
        assert distance(resumed(tmp_path, stage, ALONE, source, 1, dropout=False), whole) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_of_bfloat16_weights_go_on_at_another_stage(tmp_path, stage):
    """The gradients are rounded to bfloat16, so that another order of sums shows at 1e-2 of a step of 0.01."""
    options = {"dropout": False, "precision": "bf16"}
    whole = trained(stage, **options)
    for source in (1, 2, 3):
        train_half(tmp_path, source, ALONE, **options)
        assert distance(resumed(tmp_path, stage, ALONE, source, 1, **options), whole) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_slices_are_read_as_deepspeeds_own_tool_reads_them(tmp_path, stage):
    from deepspeed.checkpoint import ds_to_universal

    train_half(tmp_path, stage, ALONE)
    [checkpoint] = checkpoints_in(tmp_path / f"r1-s{stage}")
    assert_same_as_deepspeed(ds_to_universal, checkpoint, tmp_path / "universal")


def assert_same_as_deepspeed(tool, checkpoint, target):
    shutil.rmtree(target, ignore_errors=True)
    arguments = SimpleNamespace(
        input_folder=str(checkpoint.folder / "engine"),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    tool.main(arguments)
    saved = SavedState(checkpoint)
    assert len(saved.names) == 6
    for name in saved.names:
        ours = saved.parameter(name)
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            theirs = torch.load(target / "zero" / name / f"{key}.pt", weights_only=False)
            theirs = theirs["param"] if isinstance(theirs, dict) else theirs
            assert torch.equal(ours[key], theirs.flatten()), (name, key)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder of one and of two processes' checkpoints, and the weights that the two ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    for stage in STAGES:
        train_half(folder, stage, ALONE, dropout=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[3]
    common = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(root / "tests/training/checkpoints/zero_worker.py"), str(folder)],
            env=common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        text, _ = process.communicate(timeout=1_100)
        assert process.returncode == 0, text[-3000:]
    return folder, torch.load(folder / "weights.pt")


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("stage", STAGES)
class TestTwoRanks:
    def test_resume_to_the_bit(self, two_ranks, stage):
        found = two_ranks[1]
        assert distance(found["resumed", stage], found["whole", stage]) == 0
        assert distance(found["plain", stage], found["whole", stage]) > 1e-3  # dropout did something

    def test_go_on_from_one(self, two_ranks, stage):
        found = two_ranks[1]
        for source in (stage, other_stage(stage)):
            assert distance(found["of one", source, stage], found["plain", stage]) < TOLERANCE

    def test_agree_with_one(self, two_ranks, stage):
        """The loss curve of one process and of two, as their weights show it."""
        assert distance(two_ranks[1]["plain", stage], trained(stage, dropout=False)) < TOLERANCE

    def test_one_goes_on_from_them(self, two_ranks, stage):
        """Without a tolerance of its own: the state that one process reads is the one that the two have saved."""
        folder = two_ranks[0]
        for source in (stage, other_stage(stage)):
            [checkpoint] = checkpoints_in(folder / f"r2-s{source}")
            engine = build(stage, ALONE)
            load_converted(engine.deepspeed, checkpoint)
            saved, exact = SavedState(checkpoint), weights(engine)
            assert engine.deepspeed.global_steps == HALF
            assert all(torch.equal(exact[name].flatten(), saved.parameter(name)["fp32"]) for name in saved.names)
            advance(engine, ALONE, HALF, WHOLE)

    def test_their_slices_are_read_as_deepspeeds_own_tool_reads_them(self, two_ranks, tmp_path, stage):
        from deepspeed.checkpoint import ds_to_universal

        if stage:
            [checkpoint] = checkpoints_in(two_ranks[0] / f"r2-s{stage}")
            assert_same_as_deepspeed(ds_to_universal, checkpoint, tmp_path / "universal")
