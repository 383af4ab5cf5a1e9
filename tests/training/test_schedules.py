import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ava_core.config.train import ScheduleName, TrainConfig, WarmupName
from ava_core.training.schedules import RISE_FROM, SCHEDULES, WARMUPS, RateSchedule, rate_factor

DECAYING = ("cosine", "linear", "wsd", "polynomial")


def config(name, steps=110, warmup=10, final=0.1, **more):
    return TrainConfig(
        schedule=name, steps=steps, warmup_steps=warmup, final_learning_rate_ratio=final, evaluate_every=1, **more
    )


def factors(settings, steps):
    return [rate_factor(settings, step, step / settings.steps) for step in steps]


def test_every_schedule_and_warm_up_that_is_allowed_has_a_shape():
    assert get_args(ScheduleName) == tuple(SCHEDULES)
    assert get_args(WarmupName) == tuple(WARMUPS)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_warm_up_is_linear_and_starts_above_zero(name):
    assert factors(config(name, 100, warmup=4), range(5)) == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "inverse_sqrt"])
def test_without_warm_up_the_first_step_is_the_schedules_own(name):
    expected = RISE_FROM if name == "one_cycle" else 1.0
    assert factors(config(name, 100, warmup=0), [0]) == [expected]


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1), ("plateau", 1.0, 1.0)],
)
def test_known_points(name, middle, end):
    assert factors(config(name), [60, 110, 10_000]) == pytest.approx([middle, end, end])


def test_cosine_quarter_point():
    assert factors(config("cosine", 4, warmup=0, final=0), [1]) == pytest.approx([(1 + 2**-0.5) / 2])


def test_one_cycle_rises_over_three_tenths_and_falls_over_the_rest():
    points = factors(config("one_cycle"), [9, 25, 40, 75, 110])
    assert points == pytest.approx([0.04, 0.52, 1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ("linear", lambda x: x),
        ("cosine", lambda x: math.sin(math.pi * x / 2) ** 2),
        ("exponential", lambda x: 10 ** (2 * x - 2)),
        ("sqrt", lambda x: x**0.5),
        ("none", lambda x: 1.0),
    ],
)
def test_warm_up_has_its_closed_form_and_ends_at_the_peak(shape, factor):
    settings = config("constant", 100, warmup=8, warmup_shape=shape)
    expected = [factor((step + 1) / 8) for step in range(8)]
    assert factors(settings, range(10)) == pytest.approx([*expected, 1.0, 1.0])


def test_without_a_warm_up_the_schedule_begins_at_once():
    settings = config("linear", 100, warmup=50, final=0, warmup_shape="none")
    assert factors(settings, [0, 50]) == [1.0, 0.5]
    assert config("linear", 100, warmup=200, warmup_shape="none").warmup_length == 0


@pytest.mark.parametrize(("power", "middle"), [(1, 0.55), (2, 0.325), (0.5, 0.1 + 0.9 * 0.5**0.5)])
def test_polynomial_is_a_power_of_what_is_left(power, middle):
    points = factors(config("polynomial", decay_power=power), [10, 60, 110, 10_000])
    assert points == pytest.approx([1.0, middle, 0.1, 0.1])


def test_inverse_sqrt_halves_when_four_times_the_warm_up_is_done():
    assert factors(config("inverse_sqrt", 2000, warmup=10), [10, 40, 90, 1999]) == pytest.approx([1, 1 / 2, 1 / 3, 0.1])
    assert factors(config("inverse_sqrt", 2000, warmup=10, final=0), [999]) == pytest.approx([(10 / 999) ** 0.5])


@pytest.mark.parametrize(
    ("changes", "fault"), [({"warmup": 0}, "warmup_steps = 0"), ({"warmup_shape": "none"}, "none")]
)
def test_inverse_sqrt_needs_a_warm_up(changes, fault):
    with pytest.raises(ValueError, match=f"{fault}: inverse_sqrt falls by the length of its warm-up"):
        config("inverse_sqrt", **changes)


def test_restarts_begin_anew_after_periods_that_grow_and_peaks_that_shrink():
    settings = config("cosine_restarts", 1000, final=0.1, restart_period=20, restart_multiplier=2.0, restart_decay=0.5)
    # Periods of 20, 40 and 80 steps after a warm-up of 10 begin at 1, 1/2 and 1/4.
    begins = factors(settings, [10, 30, 70, 150])
    assert begins == [1.0, 0.5, 0.25, 0.125]
    assert factors(settings, [20, 50, 110]) == pytest.approx([0.55, 0.3, 0.175])
    quarter = 0.1 + 0.9 * (1 + 2**-0.5) / 2
    assert factors(settings, [15]) == pytest.approx([quarter])
    assert factors(settings, [29])[0] == pytest.approx(0.1, abs=0.01)


def test_restarts_of_equal_length_never_end_and_keep_to_the_least_rate():
    settings = config("cosine_restarts", 10_000, warmup=0, restart_period=7, restart_multiplier=1.0, restart_decay=0.5)
    assert factors(settings, [0, 7, 14, 21]) == [1.0, 0.5, 0.25, 0.125]
    assert factors(settings, [28, 7 * 1000, 9_999]) == pytest.approx([0.1, 0.1, 0.1])
    even = config("cosine_restarts", 100, warmup=0, restart_period=7, restart_multiplier=1.0)
    assert factors(even, range(0, 7)) == factors(even, range(91, 98))


@pytest.mark.parametrize(
    "wrong", [{"restart_period": 0}, {"restart_multiplier": 0.5}, {"restart_decay": 0.0}, {"decay_power": 0.0}]
)
def test_shapes_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config("cosine_restarts", **wrong)


def test_wsd_is_stable_then_decays_in_a_straight_line():
    points = factors(config("wsd", 100, decay_share=0.2), [10, 79, 80, 85, 90, 99, 100])
    assert points == pytest.approx([1.0, 1.0, 1.0, 0.775, 0.55, 0.145, 0.1])


def test_wsd_without_a_decay_stays():
    assert factors(config("wsd", 100, decay_share=0.0), [99, 100]) == [1.0, 1.0]


def test_a_branch_of_wsd_decays_at_once_from_a_stable_checkpoint():
    trunk, branch = config("wsd", 1000), config("wsd", 500)
    assert factors(trunk, [400, 401]) == [1.0, 1.0]
    assert factors(branch, [400, 450, 500]) == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("name", "shape"), [("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))), ("linear", lambda x: 1 - x)]
)
def test_without_a_budget_the_factor_has_no_rounding_of_shares(name, shape):
    for step in range(0, 301):
        x = min(1.0, max(0.0, (step - 7) / 293))
        expected = min(1.0, (step + 1) / 7) * (0.1 + (1 - 0.1) * shape(x))
        assert rate_factor(config(name, 300, warmup=7), step, step / 300) == expected


@given(
    st.sampled_from(tuple(SCHEDULES)),
    st.integers(1, 60),
    st.integers(0, 59),
    st.floats(0, 1),
    st.floats(0, 1),
    st.data(),
)
def test_factors_are_bounded_and_decays_never_rise(name, steps, warmup, final, share, data):
    assume(warmup or name != "inverse_sqrt")
    settings = config(name, steps + 1, min(warmup, steps), final, decay_share=share, restart_period=1 + warmup)
    step = data.draw(st.integers(0, steps))
    points = [rate_factor(settings, step, progress / 20) for progress in range(21)]
    assert all(0 <= point <= 1 + 1e-12 for point in points)
    if name in DECAYING:
        assert all(after <= before + 1e-12 for before, after in pairwise(points))


@pytest.mark.parametrize("name", [*DECAYING, "one_cycle"])
def test_a_budget_of_time_ends_the_decay_in_time(name):
    settings = config(name, steps=1_000_000, warmup=10)
    # 200 steps are all that the time is enough for.
    points = [rate_factor(settings, step, step / 200) for step in range(201)]
    assert max(points) > 0.9
    assert points[200] == pytest.approx(0.1)
    assert points[199] == pytest.approx(0.1, abs=0.05)


def test_a_budget_behind_the_steps_changes_nothing():
    settings = config("cosine")
    assert rate_factor(settings, 60, 0.2) == rate_factor(settings, 60, 60 / 110)


def optimizer():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])


def test_each_group_is_scaled_from_its_own_peak():
    opt = optimizer()
    rates = RateSchedule(opt, config("linear", steps=4, warmup=2))
    assert rates.set(0, 0.0) == 0.5
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.05]
    assert rates.set(1, 0.25) == 1.0
    assert [group["lr"] for group in opt.param_groups] == [1.0, 0.1]
    assert [group["peak_lr"] for group in opt.param_groups] == [1.0, 0.1]


def test_the_configured_peak_counts_after_a_restore():
    opt = optimizer()
    RateSchedule(opt, config("constant", warmup=0)).set(0, 0.0)
    saved = opt.state_dict()
    lower = optimizer()
    for group in lower.param_groups:
        group["lr"] /= 2
    rates = RateSchedule(lower, config("constant", warmup=0))
    lower.load_state_dict(saved)
    rates.set(50, 0.5)
    assert [group["lr"] for group in lower.param_groups] == [0.5, 0.05]


def test_rewinds_lower_all_later_rates():
    rates = RateSchedule(optimizer(), config("constant", warmup=0))
    rates.lower(0.5)
    rates.lower(0.5)
    assert rates.set(0, 0.0) == rates.set(100, 0.9) == 0.25


def test_plateau_lowers_after_so_many_evaluations_without_improvement():
    rates = RateSchedule(optimizer(), config("plateau", warmup=0, plateau_factor=0.5, plateau_patience=2))
    losses = [3.0, 2.0, 2.0, 1.9, 2.5, math.nan, 2.0, 1.8, 1.8, 1.8]
    seen = []
    for loss in losses:
        rates.after_evaluation(loss)
        seen.append(rates.set(0, 0.0))
    assert seen == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_never_falls_below_the_final_ratio():
    rates = RateSchedule(optimizer(), config("plateau", warmup=0, plateau_factor=0.3, plateau_patience=1))
    for _ in range(9):
        rates.after_evaluation(1.0)
    assert rates.set(0, 0.0) == 0.1


def test_only_plateau_listens_to_evaluations():
    rates = RateSchedule(optimizer(), config("constant", warmup=0))
    for _ in range(9):
        rates.after_evaluation(1.0)
    assert rates.set(0, 0.0) == 1.0


def test_state_goes_on_where_it_was():
    settings = config("plateau", warmup=0, plateau_patience=2)
    whole, half, resumed = (RateSchedule(optimizer(), settings) for _ in range(3))
    losses = [2.0, 1.0, 1.5, 1.5, 1.2, 1.1, 0.9]
    for loss in losses:
        whole.after_evaluation(loss)
    whole.lower(0.3)
    for loss in losses[:3]:
        half.after_evaluation(loss)
    half.lower(0.3)
    resumed.load_state_dict(half.state_dict())
    for loss in losses[3:]:
        resumed.after_evaluation(loss)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.set(7, 0.1) == whole.set(7, 0.1) != 1.0
