import math

import pytest
import torch

from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError
from ava_core.training import precision
from ava_core.training.precision import LossScaler, set_weight_dtype
from tests.training.engine.rank_runs import build_engine, settings, tiny, windows


@pytest.fixture
def float16(monkeypatch):
    """A CPU that says it has float16 products; torch computes them on any, slowly."""
    monkeypatch.setattr(precision, "float16_is_supported", lambda: True)


def test_float16_is_refused_before_the_first_step_where_the_cpu_has_none(monkeypatch):
    monkeypatch.setattr(precision, "float16_is_supported", lambda: False)
    with pytest.raises(ConfigError) as refused:
        build_engine(tiny(), settings(precision="fp16"), Ranks())
    assert str(refused.value) == "train.precision = fp16: this CPU has no float16 products: use bf16"


def test_scale_is_halved_by_an_overflow_and_doubled_after_enough_good_updates():
    scaler = LossScaler(scale=8.0, growth_interval=2)
    scales = []
    for overflowed in (True, False, True, False, False, False, False):
        scaler.update(overflowed)
        scales.append(scaler.scale)
    assert scales == [4, 4, 2, 2, 4, 4, 8]  # an overflow begins the count anew


def test_scaler_goes_on_where_it_was():
    one = LossScaler(scale=8.0, growth_interval=2)
    one.update(True)
    one.update(False)
    two = LossScaler(growth_interval=2)
    two.load_state_dict(one.state_dict())
    two.update(False)
    assert two.scale == 8.0


def test_scale_that_can_not_be_lowered_ends_the_run_in_one_line():
    scaler = LossScaler(scale=2.0)
    scaler.update(True)
    with pytest.raises(AvaError, match=r"^train.precision = fp16: .* even at a loss scale of 1: use bf16, or lower"):
        scaler.update(True)


def test_only_parameters_are_cast_and_accumulated_gradients_are_not():
    model = tiny()
    set_weight_dtype(model, torch.bfloat16, accumulated=True)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())
    model(torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_overflow_leaves_weights_and_optimiser_alone_and_lowers_the_scale(float16):
    engine = build_engine(tiny(), settings(precision="fp16"), Ranks())
    engine.scaler.scale = 2.0**40
    before = {name: value.clone() for name, value in engine.exact_state_dict().items()}
    assert engine.accumulate(windows(0))["loss_scale"] == 2.0**40
    assert engine.gradient_norm() is None
    assert engine.update(1.0) == math.inf
    after = engine.exact_state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert engine.scaler.scale == 2.0**39
    assert not any("step" in state for state in engine.optimizer.state.values())
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_float16_trains_like_float32_from_scaled_gradients_and_goes_on_from_a_checkpoint(float16, tmp_path):
    narrow, wide = (build_engine(tiny(), settings(precision=name), Ranks()) for name in ("fp16", "fp32"))
    narrow.scaler.scale = 1024.0
    for step in range(2):
        losses = [engine.accumulate(windows(step))["train_loss"] for engine in (narrow, wide)]
        assert losses[0] == pytest.approx(losses[1], abs=2e-3)
        norms = [engine.gradient_norm() for engine in (narrow, wide)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)
        assert [engine.update(0.1) for engine in (narrow, wide)] == norms
    narrow.deepspeed.save_checkpoint(str(tmp_path), tag="one", save_latest=False)
    resumed = build_engine(tiny(), settings(precision="fp16"), Ranks())
    resumed.deepspeed.load_checkpoint(str(tmp_path), tag="one")
    resumed.load_state_dict(narrow.state_dict())
    for engine in (narrow, resumed):
        engine.accumulate(windows(2))
        engine.update(0.1)
    states = [engine.exact_state_dict() for engine in (narrow, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
