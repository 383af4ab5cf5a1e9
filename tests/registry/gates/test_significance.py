"""Bounds with significance: which they may be, what they decide by, and what becomes of them without losses."""

import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from ava_core.config.gate import BoundConfig
from ava_core.config.register import RegisterConfig
from ava_core.evaluation import losses
from ava_core.registry.gates.bounds import bounds_from, check_bounds
from ava_core.registry.gates.decision import gate_digest
from ava_core.registry.gates.significance import Evidence
from tests.evaluation.comparison.evaluations import figures_of, losses_text

BPB = "test_bits_per_byte"
TO_CHAMPION = {"figure": BPB, "at_most": "champion", "significance": 0.05}
SMALL, LARGE = 0.0004, 0.01
"""Nats per byte: what 60 documents can't show, and what they can."""


@pytest.fixture
def check(tmp_path):
    """A bound held against a candidate that differs from the champion by `effect`."""

    def run(bound, effect, champion=True, **options):
        def evaluation(name, effect, **more) -> Path:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / losses.NAME).write_text(losses_text(effect, schemes=["int8"], **more))
            return tmp_path / name

        def figures(folder):
            found = figures_of((folder / losses.NAME).read_text(), ["int8"])
            return {**found["float"], **{f"int8_{name}": value for name, value in found["int8"].items()}}

        mine, theirs = evaluation("mine", effect), evaluation("theirs", 0.0, **options)
        if not champion:
            (theirs / losses.NAME).unlink()
        gate = {name: {"enabled": False} for name in RegisterConfig().gate}
        config = RegisterConfig(gate={**gate, "mine": bound})
        known = figures(theirs) if champion else {BPB: 1.8}
        (found,) = check_bounds(
            config.gate, figures(mine), ["int8"], known, Evidence(mine, lambda: losses.read(theirs))
        )
        return found

    return run


@pytest.mark.parametrize(
    ("effect", "passes", "passes_if_it_must_be_better"),
    [(LARGE, False, False), (SMALL, True, False), (0.0, True, False), (-SMALL, True, False), (-LARGE, True, True)],
)
def test_only_what_is_shown_decides(check, effect, passes, passes_if_it_must_be_better):
    assert check(TO_CHAMPION, effect).passed is passes
    assert check({**TO_CHAMPION, "must_be_better": True}, effect).passed is passes_if_it_must_be_better


def test_figure_of_which_more_is_better_is_the_mirror(check):
    bound = {**TO_CHAMPION, "figure": "test_perplexity", "at_most": None, "at_least": "champion"}
    assert check(bound, LARGE).passed
    assert not check(bound, -LARGE).passed


def test_tolerance_is_how_much_worse_still_counts_as_equal(check):
    found = check(TO_CHAMPION, LARGE)
    assert not found.passed
    wide = 2 * (found.value - found.limit)
    assert check({**TO_CHAMPION, "tolerance": wide}, LARGE).passed
    # not worse than by that much, and shown: a test of non-inferiority
    assert check({**TO_CHAMPION, "tolerance": wide, "must_be_better": True}, LARGE).passed
    assert not check({**TO_CHAMPION, "must_be_better": True}, SMALL).passed


def test_quantised_model_is_paired_with_its_own_float_model(check):
    bound = {"figure": f"quantized_{BPB}", "at_most": BPB, "significance": 0.05}
    found = check(bound, SMALL)
    assert (found.figure, found.passed) == (f"int8_{BPB}", False)  # a thousandth more on every document
    assert check({**bound, "tolerance": 0.01}, SMALL).passed


def test_decision_is_recorded_with_its_interval_and_read_again(check):
    found = check(TO_CHAMPION, LARGE)
    assert bounds_from([found.record()]) == [found]
    assert found.record()["low"] < found.value - found.limit < found.record()["high"]
    assert found.margin == -found.low
    assert "the difference to it being +0.0" in str(found)
    assert str(found).endswith("(95%)")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"champion": False}, "keeps no losses by document"),
        ({"text": "other"}, "evaluated on another text than the champion"),
    ],
)
def test_without_pairs_the_figures_are_compared_and_a_line_says_so(check, caplog, options, reason):
    caplog.set_level(logging.WARNING)
    assert not check(TO_CHAMPION, SMALL, **options).passed
    (line,) = caplog.messages
    assert line.startswith("gate: mine: ")
    assert reason in line
    assert line.endswith("without significance")
    equal = check({**TO_CHAMPION, "must_be_better": True}, 0.0, text="other")
    assert not equal.passed


def test_bounds_without_significance_have_the_digest_that_they_had():
    gate = RegisterConfig().gate
    assert gate_digest(gate) == "3c5ff05f0f1f1a52261cf3719b73e2cb11a7a45c732a04e017170ce6a850d240"
    changed = RegisterConfig(gate={"tolerance_bits_per_byte": {"significance": 0.05}}).gate
    assert gate_digest(changed) != gate_digest(gate)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"significance": 0}, "greater than 0"),
        ({"significance": 1}, "less than 1"),
        ({"significance": -0.1}, "greater than 0"),
        ({"significance": None, "must_be_better": True}, "says nothing without significance"),
        ({"figure": "dead_experts"}, "figure = dead_experts: has no value by document"),
        ({"at_most": 2.0}, "only for a bound relative to champion or to a figure: 2 is a number"),
        ({"figure": f"int8_{BPB}", "at_most": "test_loss"}, "have no difference"),
    ],
)
def test_bound_that_can_have_no_significance_is_refused(keys, fault):
    with pytest.raises(ValidationError, match=fault):
        BoundConfig(**{**TO_CHAMPION, **keys})
