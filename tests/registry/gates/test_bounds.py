"""Every kind of bound: which figures it looks at, what it compares them with, and what is missing."""

import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.config.gate import BoundConfig
from ava_core.config.register import RegisterConfig
from ava_core.errors import AvaError
from ava_core.registry.gate import figures as step_figures
from ava_core.registry.gates.bounds import bounded_figures, bounds_from, check_bounds
from ava_core.registry.gates.decision import Decision, gate_digest
from ava_core.registry.gates.page import to_markdown

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
bits = st.floats(min_value=0.1, max_value=8, allow_nan=False)
FIGURES = {
    "test_bits_per_byte": 2.0,
    "int8_test_bits_per_byte": 2.001,
    "int4_test_bits_per_byte": 2.01,
    "test_accuracy": 0.4,
    "int8_test_accuracy": 0.39,
    "int4_test_accuracy": 0.38,
    "dead_experts": 0.0,
}
SCHEMES = ("int4", "int8")


def gate_of(**bounds):
    """These bounds alone, the default ones out of force."""
    return RegisterConfig(gate={**{name: {"enabled": False} for name in RegisterConfig().gate}, **bounds}).gate


def check(bound, champion=None, figures=FIGURES, schemes=SCHEMES):
    return check_bounds(gate_of(mine=bound), figures, schemes, champion)


@relaxed
@given(value=bits, champion=st.none() | bits, int8=bits, int4=bits)
def test_the_default_gate_has_an_absolute_bound_for_the_first_a_tolerance_for_others_and_one_per_quantised_model(
    value, champion, int8, int4
):
    figures = {"test_bits_per_byte": value, "int8_test_bits_per_byte": int8, "int4_test_bits_per_byte": int4}
    before = None if champion is None else {"test_bits_per_byte": champion}
    found = check_bounds(RegisterConfig().gate, figures, SCHEMES, before)
    first = ("max_bits_per_byte", 2.3) if champion is None else ("tolerance_bits_per_byte", champion + 0.01)
    assert [(bound.bound, bound.figure, bound.value, bound.limit) for bound in found] == [
        (first[0], "test_bits_per_byte", value, first[1]),
        ("max_quantized_increase", "int4_test_bits_per_byte", int4, value + 0.02),
        ("max_quantized_increase", "int8_test_bits_per_byte", int8, value + 0.02),
    ]
    assert [bound.passed for bound in found] == [bound.value <= bound.limit + 1e-9 for bound in found]


@relaxed
@given(value=bits, limit=bits)
def test_at_least_is_the_mirror_of_at_most(value, limit):
    (least,) = check({"figure": "f", "at_least": limit}, figures={"f": value})
    (most,) = check({"figure": "f", "at_most": limit}, figures={"f": value})
    assert least.margin == -most.margin
    if abs(value - limit) > 1e-6:
        assert least.passed != most.passed and least.passed == (value > limit)


@pytest.mark.parametrize(
    ("bound", "limit", "passed"),
    [
        ({"at_least": 0.4}, 0.4, True),
        ({"at_least": 0.41}, 0.41, False),
        ({"at_least": "champion"}, 0.405, False),
        ({"at_least": "champion", "tolerance": 0.005}, 0.4, True),
        ({"at_most": "champion"}, 0.405, True),
        ({"at_least": "int8_test_accuracy"}, 0.39, True),
        ({"at_most": "int8_test_accuracy", "tolerance": 0.005}, 0.395, False),
    ],
)
def test_number_champion_and_another_figure_are_what_a_figure_is_compared_with(bound, limit, passed):
    (found,) = check({"figure": "test_accuracy", **bound}, champion={"test_accuracy": 0.405})
    assert (found.value, found.limit, found.passed) == (0.4, pytest.approx(limit), passed)


def test_bound_of_the_quantised_models_is_held_against_each_in_its_own_figures():
    relative = {"figure": "quantized_test_accuracy", "at_least": "test_accuracy", "tolerance": 0.015}
    assert [(bound.figure, bound.limit, bound.passed) for bound in check(relative)] == [
        ("int4_test_accuracy", 0.385, False),
        ("int8_test_accuracy", 0.385, True),
    ]
    champion = {"int4_test_accuracy": 0.5, "int8_test_accuracy": 0.1}
    against = check({"figure": "quantized_test_accuracy", "at_least": "champion"}, champion)
    assert [(bound.limit, bound.passed) for bound in against] == [(0.5, False), (0.1, True)]
    own = check({"figure": "quantized_test_accuracy", "at_most": "quantized_test_bits_per_byte"})
    assert [bound.limit for bound in own] == [2.01, 2.001]
    assert check(relative, schemes=()) == []


def test_without_a_champion_bounds_relative_to_it_are_not_held():
    bound = {"figure": "test_accuracy", "at_least": "champion"}
    assert check(bound) == []
    assert len(check(bound, champion={"test_accuracy": 0.9})) == 1


def test_a_bound_can_be_for_the_first_champion_only_and_any_can_be_put_out_of_force():
    bound = {"figure": "test_accuracy", "at_least": 0.9, "only_without_champion": True}
    assert [found.passed for found in check(bound)] == [False]
    assert check(bound, champion={}) == []
    assert check({**bound, "enabled": False}) == []


def test_a_gate_without_a_bound_that_applies_passes_with_a_margin_of_nothing():
    decision = Decision(model_name="m", evaluation="e", gate="g", champion=None, bounds=[])
    assert step_figures(decision) == {"passed": 1, "bounds_checked": 0, "bounds_failed": 0, "smallest_margin": 0.0}


@pytest.mark.parametrize("side", ["at_most", "at_least"])
def test_no_number_passes_on_no_side(side):
    (found,) = check({"figure": "f", side: 1.0}, figures={"f": math.nan})
    assert not found.passed


def test_misspelt_figure_is_refused_with_the_one_that_the_evaluation_has():
    meant = "the evaluation has no test_acuracy, which the gate bounds: did you mean test_accuracy? If not, evaluate it"
    with pytest.raises(AvaError, match=re.escape(meant)):
        check({"figure": "test_acuracy", "at_least": 0.1})
    with pytest.raises(AvaError, match="has no test_bits, which the gate bounds: evaluate it again"):
        check({"figure": "test_accuracy", "at_least": "test_bits"})


def test_champion_that_lacks_the_figure_is_refused_with_the_ways_out():
    with pytest.raises(AvaError, match=r"the present champion has no test_accuracy, .*gate\.mine\.enabled=false"):
        check({"figure": "test_accuracy", "at_least": "champion"}, champion={"test_bits_per_byte": 2.0})


def test_refusal_by_a_lower_bound_says_so_and_its_record_is_read_again():
    (found,) = check({"figure": "test_accuracy", "at_least": 0.45})
    assert str(found) == "test_accuracy 0.4000, at least 0.4500 (mine): fails by 0.0500"
    assert found.record()["at_least"] is True
    assert bounds_from([found.record()]) == [found]


def test_values_too_small_for_four_decimals_are_shown_with_their_digits():
    (found,) = check({"figure": "error", "at_most": 2e-5}, figures={"error": 3e-5})
    assert str(found) == "error 3e-05, at most 2e-05 (mine): fails by 1e-05"


def test_page_names_the_side_of_each_bound_where_there_are_two_and_the_units():
    gate = RegisterConfig(gate={"accuracy": {"figure": "test_accuracy", "at_least": 0.45}}).gate
    bounds = check_bounds(gate, FIGURES, ("int8",), None)
    page = to_markdown(Decision(model_name="m", evaluation="e", gate="g", champion=None, bounds=bounds)).splitlines()
    assert "| figure | value | limit | by | bound | |" in page
    assert "| `test_bits_per_byte` | 2.0000 | at most 2.3000 | 0.3000 below | `max_bits_per_byte` | passed |" in page
    assert "| `test_accuracy` | 0.4000 | at least 0.4500 | 0.0500 below | `accuracy` | **failed** |" in page
    assert any(line.startswith("Figures are in their own units") for line in page)


def test_digest_changes_with_bounds_in_force_only():
    gate = RegisterConfig().gate
    more = {**gate, "mine": BoundConfig(figure="test_loss", at_most=3.0)}
    off = {**gate, "mine": BoundConfig(figure="test_loss", at_most=3.0, enabled=False)}
    assert gate_digest(more) != gate_digest(gate) == gate_digest(off)


def test_figures_that_are_looked_at_are_known_without_an_evaluation():
    gate = RegisterConfig(gate={"speed": {"figure": "int8_decode_speedup", "at_least": 1.0}}).gate
    assert bounded_figures(gate, ("int8",)) == {"test_bits_per_byte", "int8_test_bits_per_byte", "int8_decode_speedup"}
