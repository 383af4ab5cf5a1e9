"""Ratios cancel noise that hits both subjects of a round; results of one section leave the others alone."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.report import Ratio, keep, paired_ratio, table

rates = st.floats(1, 1e6)


def test_quartiles_are_those_of_the_quotients():
    assert paired_ratio([2, 4, 6, 8, 10], [1, 1, 1, 1, 1]) == Ratio(median=6, low=4, high=8)


def test_quotients_are_taken_within_a_round():
    # the medians are 10 and 10, but in every round the first is half or twice the second
    assert paired_ratio([10, 5, 20], [5, 10, 10]).median == 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(rates, rates, st.floats(0.1, 10)), min_size=1, max_size=8))
def test_a_slow_moment_that_hits_both_changes_nothing(rounds):
    quiet = paired_ratio([a for a, _, _ in rounds], [b for _, b, _ in rounds])
    noisy = paired_ratio([a * slow for a, _, slow in rounds], [b * slow for _, b, slow in rounds])
    assert noisy.median == pytest.approx(quiet.median)
    assert noisy.low == pytest.approx(quiet.low)
    assert quiet.low <= quiet.median <= quiet.high


@pytest.mark.parametrize("counts", [(0, 0), (2, 3)])
def test_rounds_that_dont_pair_are_refused(counts):
    with pytest.raises(ValueError):
        paired_ratio([1.0] * counts[0], [1.0] * counts[1])


def test_columns_line_up():
    lines = table(["name", "x"], [["a", "1"], ["long name", "22"]]).splitlines()
    assert lines == ["name        x", "a           1", "long name  22"]


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    for section, value in (("one", 1), ("two", 2), ("one", 3)):
        path = keep("machine", section, {"threads": 2}, {"value": value}, tmp_path)
    kept = json.loads(path.read_text())
    assert {name: entry["value"] for name, entry in kept.items()} == {"one": 3, "two": 2}
    assert kept["two"]["hardware"] == {"threads": 2}
