"""Checkpoints of the training engine itself: every optimiser at every stage, to the bit and to another stage."""

import pytest
import torch

from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.training.checkpoints import CheckpointFolder, resume_from
from ava_core.training.checkpoints.folder import checkpoints_in
from ava_core.training.checkpoints.universal import SavedState
from ava_core.training.precision import require_support
from tests.training.engine.rank_runs import build_engine, settings, tiny, windows

ALONE = Ranks()
HALF, WHOLE = 3, 6
OPTIMIZERS = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "rounded": {"optimizer": "muon", "precision": "bf16"},
    "lion": {"optimizer": "lion", "learning_rate": 0.003},
}
WHOLE_ONLY = {
    "adafactor": {"optimizer": "adafactor"},
    "sophia": {"optimizer": "sophia", "learning_rate": 0.003},
    "half": {"precision": "fp16"},
    "averaged": {"optimizer": "adamw_schedule_free", "schedule": "constant", "precision": "bf16"},
}


def new_engine(**fields):
    config = settings(**fields)
    return build_engine(tiny(dropout=0.1, router_jitter=0.1), config, ALONE), config


def advance(engine, first, last):
    for step in range(first, last):
        engine.accumulate(windows(step))
        engine.gradient_norm()
        engine.update(1.0)


def exact(engine):
    return {name: value.clone() for name, value in engine.exact_state_dict().items()}


def saved_half(folder, **fields):
    engine, config = new_engine(**fields)
    torch.manual_seed(1)
    advance(engine, 0, HALF)
    checkpoints = CheckpointFolder(folder, config, ALONE, {})
    checkpoints.save(engine, HALF, {})
    checkpoints.close()
    return engine


def assert_bit_exact(folder, **fields):
    engine = saved_half(folder, **fields)
    advance(engine, HALF, WHOLE)
    other, config = new_engine(**fields)
    assert CheckpointFolder(folder, config, ALONE, {}).restore(other).step == HALF
    advance(other, HALF, WHOLE)
    whole, resumed = exact(engine), exact(other)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    biases = [name for name in whole if "expert_bias" in name]
    assert biases and all(whole[name].any() for name in biases)


@pytest.mark.parametrize("kind", ["adamw", "rounded"])
def test_n_and_n_steps_are_2n_steps_to_the_bit(tmp_path, kind):
    assert_bit_exact(tmp_path, **OPTIMIZERS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*OPTIMIZERS, *WHOLE_ONLY])
def test_every_optimiser_resumes_to_the_bit(tmp_path, kind):
    fields = (OPTIMIZERS | WHOLE_ONLY)[kind]
    try:
        require_support(settings(**fields))
    except ConfigError as error:
        pytest.skip(str(error))
    assert_bit_exact(tmp_path, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_resumes_to_the_bit(tmp_path, kind, stage):
    assert_bit_exact(tmp_path, zero_stage=stage, **OPTIMIZERS[kind])


@pytest.mark.parametrize("stage", [0, 3, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2))])
def test_every_stage_resumes_to_the_bit_beside_frozen_layers(tmp_path, stage):
    chosen = {"freeze": ["embed*", "layers.0.*"], "learning_rate_decay_by_layer": 0.5}
    assert_bit_exact(tmp_path, zero_stage=stage, **chosen, **OPTIMIZERS["rounded"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 3), (3, 0), (2, 1)])
def test_weights_and_moments_arrive_at_another_stage_to_the_bit(tmp_path, kind, source, target):
    engine = saved_half(tmp_path / "a", zero_stage=source, **OPTIMIZERS[kind])
    other, config = new_engine(zero_stage=target, **OPTIMIZERS[kind])
    resume_from(other, tmp_path / "a", {}, ALONE, config)
    before, after = exact(engine), exact(other)
    # What is no parameter is rounded with the weights at stages 1 to 3.
    assert all(torch.equal(after[name], before[name]) for name in before if "expert_bias" not in name)
    checkpoints = CheckpointFolder(tmp_path / "b", config, ALONE, {})
    checkpoints.save(other, HALF, {})
    checkpoints.close()
    first, second = (SavedState(checkpoints_in(tmp_path / name)[0]) for name in "ab")
    assert first.names == second.names
    for name in first.names:
        one, two = first.parameter(name), second.parameter(name)
        assert len(one) > 1 and one.keys() == two.keys()
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one), name
    advance(other, HALF, WHOLE)
