"""One ranking of two."""

import numpy as np
import pytest

from ava_core.retrieval.fusion import MEANING, SATURATED, Candidates, Hit, fuse


def candidates(bm25: list[float], cosines: list[float], ceiling: float = 10.0) -> Candidates:
    numbers = np.arange(len(bm25)) * 10
    return Candidates(numbers, np.array(bm25, np.float32), ceiling, np.array(cosines, np.float32))


def order(given: Candidates) -> list[int]:
    nothing = np.zeros(0, np.int64)
    return [hit.passage for hit in fuse(given, nothing, nothing, 10)]


def test_scores_are_coverage_and_what_it_leaves_to_meaning() -> None:
    given = candidates([3.5, 0.0], [0.5, 0.8])
    best = 3.5 / (SATURATED * 10)
    expected = [best + MEANING * (1 - best) ** 2 * 0.25, MEANING * (1 - best) ** 2 * 0.64]
    assert given.scores() == pytest.approx(expected, abs=1e-5)


def test_passage_with_all_words_comes_first_whatever_means_more() -> None:
    assert order(candidates([9.0, 1.0], [0.1, 0.9])) == [0, 10]


def test_where_few_words_are_there_meaning_decides() -> None:
    assert order(candidates([1.0, 0.0], [0.1, 0.7])) == [10, 0]
    assert order(candidates([0.0, 0.0, 0.0], [0.1, -0.9, 0.7], ceiling=0.0)) == [20, 0, 10]


def test_passages_with_all_words_are_in_the_order_of_their_scores_by_words() -> None:
    assert order(candidates([8.0, 9.0], [0.9, 0.1])) == [10, 0]


def test_equal_scores_are_in_the_order_of_the_passages() -> None:
    assert order(candidates([2.0, 2.0, 2.0], [0.5, 0.5, 0.5])) == [0, 10, 20]


def test_hits_know_their_places() -> None:
    hits = fuse(candidates([5.0, 0.0], [0.1, 0.2]), np.array([0]), np.array([10, 0]), 1)
    assert [(hit.passage, hit.lexical_rank, hit.dense_rank) for hit in hits] == [(0, 1, 2)]


def test_nothing_found_is_no_hit() -> None:
    assert fuse(candidates([], []), np.zeros(0, np.int64), np.zeros(0, np.int64), 3) == []
    assert Hit(4, 1.0).lexical_rank is None
