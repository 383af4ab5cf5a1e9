"""Limits by hand: constant, and by ZClip's running statistics."""

import json
import math

import pytest

from ava_core.config.train import TrainConfig
from ava_core.training.gradients.clipping import SMOOTHING, THRESHOLD, WARMUP_STEPS, build_clipper


def clipper(**changes):
    return build_clipper(TrainConfig(**changes))


def adaptive(norms, clip=0.0):
    built = clipper(clip_mode="adaptive", gradient_clip=clip)
    for norm in norms:
        built.observe(norm)
    return built


def warmed():
    """Mean 2 and standard deviation 0.2 exactly: 24 norms that alternate by d and one at the mean."""
    d = 0.2 * math.sqrt(WARMUP_STEPS / (WARMUP_STEPS - 1))
    return adaptive([2 + d, 2 - d] * ((WARMUP_STEPS - 1) // 2) + [2.0])


def test_constant_limit_is_the_configured_one_and_zero_is_none():
    assert clipper(gradient_clip=0.7).limit(5.0) == clipper(gradient_clip=0.7).limit(None) == 0.7
    assert clipper(gradient_clip=0.0).limit(5.0) == math.inf


def test_nothing_but_the_constant_limits_before_the_warm_up_is_over():
    early = adaptive([2.0, 2.1] * ((WARMUP_STEPS - 1) // 2))
    assert early.limit(1e6) == math.inf
    assert adaptive([2.0, 2.1], clip=3.0).limit(1e6) == 3.0


def test_norm_that_stands_out_is_clipped_the_lower_the_further_out():
    built = warmed()
    # z = 5: m + s z_thres^2 / z = 2 + 0.2 * 6.25 / 5; z = 25 gives 2 + 0.2 * 0.25
    assert built.limit(3.0) == pytest.approx(2.25)
    assert built.limit(7.0) == pytest.approx(2.05)
    assert built.limit(2.4) > 2.4  # z = 2 stays as it is


def test_unknown_norm_is_limited_where_norms_begin_to_stand_out():
    assert warmed().limit(None) == pytest.approx(2 + 0.2 * THRESHOLD)


def test_adaptive_limit_is_never_above_the_constant_one():
    built = warmed()
    built.constant = 2.1
    assert built.limit(3.0) == built.limit(None) == 2.1
    assert built.limit(7.0) == pytest.approx(2.05)


def test_statistics_take_in_the_clipped_norm():
    built, twin = warmed(), warmed()
    clipped = built.limit(7.0)
    built.observe(7.0)
    twin.observe(clipped)
    assert built.limit(None) == twin.limit(None)
    mean = SMOOTHING * 2 + (1 - SMOOTHING) * 2.05
    variance = SMOOTHING * 0.04 + (1 - SMOOTHING) * (2.05 - mean) ** 2
    assert built.limit(None) == pytest.approx(mean + THRESHOLD * math.sqrt(variance))


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_norms_that_are_no_finite_number_leave_no_trace(norm):
    built = warmed()
    before = built.state_dict()
    assert math.isfinite(built.limit(norm))
    built.observe(norm)
    assert built.state_dict() == before


def test_norms_that_never_change_clip_nothing_that_is_like_them():
    assert adaptive([2.0] * 40).limit(2.0) == 2.0


def test_figures_tell_the_limit_of_the_last_step_and_how_many_were_clipped():
    built = warmed()
    built.observe(7.0)
    assert built.figures() == {"gradient_limit": pytest.approx(2.05), "clipped_steps": 1.0}
    assert clipper().figures() == {}


@pytest.mark.parametrize("done", [3, 40])
def test_restored_clipper_goes_on_exactly(done):
    norms = [2 + math.sin(step) for step in range(60)]
    whole, first = adaptive(norms, 2.5), adaptive(norms[:done], 2.5)
    second = clipper(clip_mode="adaptive", gradient_clip=2.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for norm in norms[done:]:
        second.observe(norm)
    assert second.state_dict() == whole.state_dict()
