"""One ranking of two."""

import pytest

from ava_core.retrieval.fusion import Hit, fuse


def test_ranks_are_fused_by_their_reciprocals() -> None:
    hits = fuse([5, 7], [7, 9], (1.0, 1.0))
    assert [(hit.passage, hit.lexical_rank, hit.dense_rank) for hit in hits] == [(7, 2, 1), (5, 1, None), (9, None, 2)]
    assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


def test_equal_scores_are_in_the_order_of_the_passages() -> None:
    assert [hit.passage for hit in fuse([9, 2], [3, 8], (1.0, 1.0))] == [3, 9, 2, 8]


def test_weights_favour_one_ranking() -> None:
    assert [hit.passage for hit in fuse([1, 2], [2, 1], (0.3, 0.7))] == [2, 1]
    assert [hit.passage for hit in fuse([1, 2], [2, 1], (0.7, 0.3))] == [1, 2]


def test_nothing_found_is_no_hit() -> None:
    assert fuse([], [], (1.0, 1.0)) == []
    assert fuse([4], [], (1.0, 1.0)) == [Hit(4, 1 / 61, 1, None)]
