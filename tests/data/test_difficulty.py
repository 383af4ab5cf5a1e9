"""Scores of windows, by hand, and the same whatever block they are computed in."""

import math

import numpy as np
import pytest

from ava_core.data import difficulty
from ava_core.data.difficulty import SMOOTHING, bigram_scores, length_scores, rarity_scores, window_losses


def test_windows_are_those_of_the_grid():
    seen = []

    def losses(windows):
        seen.extend(windows.tolist())
        return windows[:, 0].astype(float)

    scores = window_losses(losses, np.arange(11, dtype=np.uint16), 3, batch_size=2)
    assert seen == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert scores.tolist() == [0.0, 3.0, 6.0]


def test_length_is_the_mean_over_the_targets_of_their_documents_lengths():
    tokens = np.array([5, 5, 0, 6, 0, 7, 7, 7, 7])  # documents of 3, 2 and 4 tokens, the last one without its end
    assert length_scores(tokens, 4, 0).tolist() == [(3 + 3 + 2 + 2) / 4, 4.0]


def test_rarity_is_the_mean_surprise_under_the_shares_of_the_tokens():
    tokens = np.array([1, 1, 1, 2, 1])
    assert rarity_scores(tokens, 2) == pytest.approx([-math.log(4 / 5), -(math.log(1 / 5) + math.log(4 / 5)) / 2])


def test_bigram_loss_is_that_of_smoothed_counts():
    tokens = np.array([1, 2, 1, 2, 1])  # 1 2 twice, 2 1 twice; 1 occurs three times, 2 twice; V = 3
    after_1, after_2 = (2 + SMOOTHING) / (3 + 3 * SMOOTHING), (2 + SMOOTHING) / (2 + 3 * SMOOTHING)
    assert bigram_scores(tokens, 2) == pytest.approx([-(math.log(after_1) + math.log(after_2)) / 2] * 2)


SCORES = {
    "length": lambda tokens: length_scores(tokens, 8, 0),
    "rarity": lambda tokens: rarity_scores(tokens, 8),
    "bigram": lambda tokens: bigram_scores(tokens, 8),
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_blocks_don_t_change_the_scores(score, monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 9, 500).astype(np.uint16)
    whole = score(tokens)
    monkeypatch.setattr(difficulty, "BLOCK_TOKENS", 37)
    assert np.array_equal(score(tokens), whole)


def test_pairs_that_share_a_counter_never_seem_more_frequent_than_their_first_token(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 50, 2_000).astype(np.uint16)
    exact = bigram_scores(tokens, 10)
    monkeypatch.setattr(difficulty, "BIGRAM_BUCKETS", 1)  # every pair shares it
    shared = bigram_scores(tokens, 10)
    assert (shared >= 0).all()
    assert (shared < exact).all()
    monkeypatch.setattr(difficulty, "BIGRAM_BUCKETS", 2_503)  # 2,500 pairs
    assert np.array_equal(bigram_scores(tokens, 10), exact)
