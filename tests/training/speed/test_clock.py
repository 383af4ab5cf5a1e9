"""Seconds of a training, by a clock that the test moves."""

import pytest

from ava_core.training.speed import clock as clock_module
from ava_core.training.speed.clock import PhaseClock


class Hand:
    """Stands for time.perf_counter."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


@pytest.fixture
def hand(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(clock_module.time, "perf_counter", hand)
    return hand


def take_step(clock, hand, *, evaluation=0.0):
    with clock.step():
        hand.spend(0.5)
        with clock.phase("forward_backward"):
            hand.spend(6.0)
        with clock.phase("update"):
            hand.spend(1.5)
        with clock.phase("evaluation"):
            hand.spend(evaluation)


def test_overhead_is_what_is_neither_the_passes_nor_the_optimiser_nor_an_evaluation(hand):
    clock = PhaseClock()
    take_step(clock, hand, evaluation=100.0)
    hand.spend(50.0)
    with clock.phase("checkpoint"):
        hand.spend(7.0)
    take_step(clock, hand)
    assert (clock.steps, clock.seconds) == (2, 16.0)
    assert clock.overhead_share == pytest.approx(1 / 16)
    assert clock.phases == {"forward_backward": 12.0, "update": 3.0, "evaluation": 100.0, "checkpoint": 7.0}


def test_time_of_the_present_step_counts_for_a_budget_and_for_a_checkpoint_at_its_end(hand):
    clock = PhaseClock()
    take_step(clock, hand)
    with clock.step():
        hand.spend(2.0)
        assert clock.seconds == 10.0
        state = clock.state_dict()
    resumed = PhaseClock()
    resumed.load_state_dict(state)
    assert (resumed.seconds, resumed.steps) == (10.0, 2)
    take_step(resumed, hand)
    assert (resumed.seconds, resumed.steps, resumed.phases["forward_backward"]) == (18.0, 3, 12.0)


def test_step_that_failed_is_not_counted(hand):
    clock = PhaseClock()
    take_step(clock, hand)
    with pytest.raises(ZeroDivisionError), clock.step():
        hand.spend(3.0)
        1 / 0
    assert (clock.steps, clock.seconds) == (1, 8.0)


def test_clock_that_never_ran_divides_by_nothing(hand):
    clock = PhaseClock()
    assert (clock.overhead_share, clock.seconds) == (0.0, 0.0)
