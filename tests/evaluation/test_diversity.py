"""Diversity figures against counts by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.evaluation.diversity import distinct, repetition


def test_distinct_counts_over_all_texts_together():
    # a b | b a, a b: three bigrams in all, two different ones
    assert distinct(["a b a", "a b"]) == pytest.approx(2 / 3)


def test_repetition_is_the_share_of_fourgrams_that_were_there_before():
    # abcd bcda cdab dabc abcd: the last of five repeats
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)


def test_texts_without_ngrams_count_as_nothing():
    assert distinct(["", "word"]) == 0
    assert repetition(["three words only", ""]) == 0
    assert repetition(["three words only", "x x x x x"]) == pytest.approx(1 / 2)


words = st.lists(st.sampled_from(["ay", "no", "thou"]), max_size=30).map(" ".join)


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.lists(words, max_size=5))
def test_both_are_shares(texts):
    assert 0 <= distinct(texts) <= 1
    assert 0 <= repetition(texts) < 1


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(words)
def test_white_space_does_not_matter(text):
    assert distinct([text]) == distinct([text.replace(" ", "\n\n  ")])
