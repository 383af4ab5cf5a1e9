import pytest
import torch

from ava_core.training.schedules import SCHEDULES, build_schedule, build_scheduler


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_linear_and_starts_above_zero(name):
    factor = build_schedule(name, total_steps=100, warmup_steps=4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_known_points(name, middle):
    factor = build_schedule(name, total_steps=110, warmup_steps=10, minimum=0.1)
    assert factor(60) == pytest.approx(middle)
    assert factor(110) == factor(10_000) == pytest.approx(1.0 if name == "constant" else 0.1)


def test_cosine_quarter_point():
    assert build_schedule("cosine", total_steps=4)(1) == pytest.approx((1 + 2**-0.5) / 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_factor_never_rises_after_warm_up(name):
    factor = build_schedule(name, total_steps=50, warmup_steps=5)
    values = [factor(step) for step in range(5, 60)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cos", "total_steps": 1}, "schedule = 'cos'"),
        ({"name": "cosine", "total_steps": 0}, "total_steps = 0"),
        ({"name": "cosine", "total_steps": 5, "warmup_steps": 6}, "warmup_steps = 6"),
        ({"name": "cosine", "total_steps": 5, "minimum": 1.5}, "minimum = 1.5"),
    ],
)
def test_refusal_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(**arguments)


def test_scheduler_scales_each_group_from_its_own_rate():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    scheduler = build_scheduler(optimizer, build_schedule("linear", total_steps=4, warmup_steps=2))
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05]
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.1]
