"""What counts as trouble, what is done about it, and what a rewind must not forget."""

import copy
import json
import logging
import math

import pytest
import torch
from torch import nn

from ava_core.config.train_sections import GuardConfig
from ava_core.errors import AvaError
from ava_core.training.gradients.guard import Guard, gradient_health


def guard(policy="skip", loss_scaling=False, **fields):
    return Guard(GuardConfig(policy=policy, **fields), loss_scaling=loss_scaling)


def filled(policy="skip", count=8, **fields):
    """A guard that has accepted losses of mean 3 and deviation 0.1."""
    built = guard(policy, window=16, spike_deviations=5.0, **fields)
    for step in range(count):
        assert built.judge(step + 1, 3.0 + 0.1 * (-1) ** step, 1.0) == "accept"
    return built


@pytest.mark.parametrize("policy", ["skip", "rewind"])
@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, None), (3.0, math.nan), (3.0, math.inf)])
def test_numbers_that_are_not_finite_are_trouble(policy, loss, norm):
    assert guard(policy).judge(1, loss, norm) == policy


def test_under_stop_the_engine_ends_the_run_for_a_loss_and_the_guard_for_a_gradient():
    assert guard("stop").judge(3, math.nan, None) == "accept"
    with pytest.raises(AvaError, match=r"step 3: gradient norm is inf: .*learning_rate"):
        guard("stop").judge(3, 3.0, math.inf)


def test_infinite_norm_is_left_to_a_loss_scaler():
    assert guard("skip", loss_scaling=True).judge(1, 3.0, math.inf) == "accept"
    assert guard("skip", loss_scaling=True).judge(1, math.inf, math.inf) == "skip"


def test_spike_is_a_loss_above_five_deviations():
    built = filled()
    assert built.judge(9, 3.49, 1.0) == "accept"
    assert filled().judge(9, 3.51, 1.0) == "skip"
    assert filled().judge(9, 0.1, 1.0) == "accept"  # a fall is none


def test_half_of_the_window_must_be_filled_first():
    assert filled(count=6).judge(7, 100.0, 1.0) == "accept"
    assert filled(count=8).judge(9, 100.0, 1.0) == "skip"


def test_without_deviations_no_finite_loss_is_a_spike():
    built = guard(window=8)
    assert [built.judge(step, 1.0, None) for step in range(1, 10)] == ["accept"] * 9
    assert built.judge(10, 1e9, None) == "accept"


def test_one_spike_cannot_hide_the_next():
    built = filled()
    assert [built.judge(step, 9.0, 1.0) for step in range(9, 13)] == ["skip"] * 4
    assert built.figures() == {"skipped_steps": 4.0}


def test_loss_that_stands_still_makes_no_spike_of_a_small_change():
    built = guard(window=8, spike_deviations=3.0)
    assert all(built.judge(step, 2.0, None) == "accept" for step in range(1, 9))
    assert built.judge(9, 2.005, None) == "accept"
    assert built.judge(10, 2.1, None) == "skip"


def test_losses_that_left_the_window_are_forgotten():
    built = guard(window=8, spike_deviations=3.0)
    for step in range(8):
        built.judge(step + 1, 10.0 + step % 2, None)
    for step in range(8, 16):
        built.judge(step + 1, 2.0 + 0.1 * (step % 2), None)
    assert built.judge(17, 4.0, None) == "skip"


def test_spike_under_stop_is_told_and_taken_in(caplog):
    built = filled("stop")
    caplog.set_level(logging.WARNING)
    assert built.judge(9, 9.0, 1.0) == "accept"
    assert "step 9: loss is 9, above 3.5" in caplog.text
    assert built.state_dict()["recent"][-1] == 9.0
    assert built.figures() == {}


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_run_ends_after_as_many_events_as_are_allowed(policy):
    built = guard(policy, max_events=2)
    for step in (4, 7):
        assert built.judge(step, math.nan, None) == policy
        if policy == "rewind":
            built.rewound(built.memory(), failed_step=step, restored_step=0)
    with pytest.raises(AvaError, match=f"step 9: loss is nan: .*2 such events under guard.policy = {policy}"):
        built.judge(9, math.nan, None)


def test_rewind_passes_over_all_batches_up_to_the_one_that_failed():
    """A trainer in small: it notes the index of each batch that it takes; batch 7 and then batch 12 are bad."""
    built, taken, saved = guard("rewind", max_events=5), [], {}
    done = 0
    while done < 10:
        if done % 3 == 0:
            saved[done] = copy.deepcopy(built.state_dict())
        index = done + built.batch_offset
        taken.append(index)
        step = done + 1
        if built.judge(step, math.nan if index in (7, 12) else 3.0, None) == "accept":
            done += 1
            continue
        carried = built.memory()
        at = max(at for at in saved if built.may_restore(at, step))
        built.load_state_dict(saved[at])
        built.rewound(carried, failed_step=step, restored_step=at)
        saved = {step: state for step, state in saved.items() if step <= at}
        done = at
    # 7 fails at step 8: back to 6 steps done. Batches 8 to 12 follow; 12 fails at step 11, which isn't reached.
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert built.figures() == {"rewinds": 1.0}
    assert built.batch_offset == 2


def test_no_batch_comes_twice_over_several_rewinds_and_the_counts_survive_older_checkpoints():
    built, taken, saved = guard("rewind", max_events=9, window=8), [], {}
    bad, done = {5, 9, 10, 16}, 0
    while done < 12:
        if done % 2 == 0:
            saved[done] = copy.deepcopy(built.state_dict())
        index, step = done + built.batch_offset, done + 1
        taken.append(index)
        if built.judge(step, math.inf if index in bad else 3.0, None) == "accept":
            done += 1
            continue
        carried = built.memory()
        at = max(at for at in saved if built.may_restore(at, step))
        built.load_state_dict(saved[at])
        built.rewound(carried, failed_step=step, restored_step=at)
        saved = {step: state for step, state in saved.items() if step <= at}
        done = at
    assert taken == list(range(taken[-1] + 1)) and bad < set(taken)
    assert built.figures() == {"rewinds": 4.0}


def test_unproven_and_used_checkpoints_are_not_taken_and_fresh_weights_always_are():
    built = guard("rewind")
    assert not built.may_restore(20, 21)  # step 21 was the first with these weights, and it failed
    assert built.may_restore(10, 21)
    built.rewound(built.memory(), failed_step=21, restored_step=10)
    assert not built.may_restore(10, 15)  # it came to the same end
    assert built.may_restore(0, 15) and built.may_restore(0, 1)
    built.rewound(built.memory(), failed_step=15, restored_step=0)
    assert built.may_restore(10, 15)  # written anew since


def test_rate_is_lowered_by_as_much_as_the_restored_rates_do_not_know():
    built = guard("rewind", lower_rate=0.5)
    old = built.state_dict()  # a checkpoint before all rewinds
    assert built.rewound(built.memory(), failed_step=9, restored_step=4) == 0.5
    newer = built.state_dict()  # a checkpoint after the first one
    carried = built.memory()
    built.load_state_dict(newer)
    assert built.rewound(carried, failed_step=9, restored_step=6) == 0.5
    carried = built.memory()
    built.load_state_dict(old)
    assert built.rewound(carried, failed_step=9, restored_step=0) == 0.125


def test_after_a_rewind_the_recent_losses_are_those_of_the_checkpoint():
    built = filled("rewind")
    saved = built.state_dict()
    built.judge(9, 3.3, 1.0)
    assert built.judge(10, 9.0, 1.0) == "rewind"
    carried = built.memory()
    built.load_state_dict(saved)
    built.rewound(carried, failed_step=10, restored_step=8)
    assert built.state_dict()["recent"] == saved["recent"]


def test_restored_guard_judges_as_the_one_that_went_on():
    losses = [3 + 0.2 * math.sin(step * step) for step in range(40)]
    losses[30] = 5.0
    whole, first = (guard(window=16, spike_deviations=3.0) for _ in range(2))
    expected = [whole.judge(i + 1, loss, None) for i, loss in enumerate(losses)]
    verdicts = [first.judge(i + 1, loss, None) for i, loss in enumerate(losses[:20])]
    second = guard(window=16, spike_deviations=3.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    verdicts += [second.judge(i + 21, loss, None) for i, loss in enumerate(losses[20:])]
    assert verdicts == expected and "skip" in expected
    assert second.state_dict() == whole.state_dict()


def test_health_of_gradients_by_hand():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    model.head = nn.Linear(1, 4, bias=False)
    assert gradient_health(model) == {}
    model.layers[0].weight.grad = torch.tensor([[3.0, 4.0]])
    model.layers[1].weight.grad = torch.tensor([[0.0, 2.0]])
    model.head.weight.grad = torch.tensor([[0.0], [1.0], [math.nan], [math.inf]])
    assert gradient_health(model) == {
        "zero_gradients": 2 / 8,
        "non_finite_gradients": 2 / 8,
        "gradient_norm_ratio": 2.5,
    }
