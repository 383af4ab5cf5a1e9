"""The comparisons that decide, without a server."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.config.gate import BoundConfig
from ava_core.config.register import RegisterConfig
from ava_core.errors import AvaError
from ava_core.registry.gates.bounds import check_bounds

# A busy machine is no fault of the code.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
bits = st.floats(min_value=0.1, max_value=8, allow_nan=False)
slack = st.floats(min_value=0, max_value=1, allow_nan=False)


def gate_with(**bounds: dict[str, object]) -> dict[str, BoundConfig]:
    """The default gate with these bounds changed or added."""
    return RegisterConfig(gate=bounds).gate


@relaxed
@given(value=bits, champion=bits, tolerance=slack)
def test_with_a_champion_the_tolerance_decides(value, champion, tolerance):
    gate = gate_with(tolerance_bits_per_byte={"tolerance": tolerance}, max_bits_per_byte={"at_most": 0.001})
    (bound,) = check_bounds(gate, {"test_bits_per_byte": value}, (), {"test_bits_per_byte": champion})
    excess = value - champion - tolerance
    if abs(excess) > 1e-6:
        assert bound.passed == (excess < 0)


@relaxed
@given(value=bits, limit=bits)
def test_without_a_champion_the_absolute_bound_decides(value, limit):
    (bound,) = check_bounds(gate_with(max_bits_per_byte={"at_most": limit}), {"test_bits_per_byte": value}, (), None)
    if abs(value - limit) > 1e-6:
        assert bound.passed == (value < limit)


@relaxed
@given(value=bits, loss=slack, allowed=slack)
def test_every_quantised_model_has_its_own_bound_against_the_float_model(value, loss, allowed):
    figures = {"test_bits_per_byte": value, "int8_test_bits_per_byte": value, "int4_test_bits_per_byte": value + loss}
    _, int8, int4 = check_bounds(
        gate_with(max_quantized_increase={"tolerance": allowed}), figures, ("int8", "int4"), None
    )
    assert int8.passed
    if abs(loss - allowed) > 1e-6:
        assert int4.passed == (loss < allowed)


def test_value_exactly_at_the_tolerance_passes():
    gate = gate_with(tolerance_bits_per_byte={"tolerance": 0.01})
    (bound,) = check_bounds(gate, {"test_bits_per_byte": 2.01}, (), {"test_bits_per_byte": 2.0})
    assert bound.passed


def test_figure_that_is_no_number_does_not_pass():
    (bound,) = check_bounds(gate_with(), {"test_bits_per_byte": math.nan}, (), None)
    assert not bound.passed


def test_refusal_says_which_bound_failed_and_by_how_much():
    (bound,) = check_bounds(gate_with(max_bits_per_byte={"at_most": 2.3}), {"test_bits_per_byte": 2.4567}, (), None)
    assert str(bound) == "test_bits_per_byte 2.4567, at most 2.3000 (max_bits_per_byte): fails by 0.1567"


def test_evaluation_without_a_bounded_figure_is_an_error():
    with pytest.raises(AvaError, match="the evaluation has no int8_test_bits_per_byte"):
        check_bounds(gate_with(), {"test_bits_per_byte": 2.0}, ("int8",), None)
