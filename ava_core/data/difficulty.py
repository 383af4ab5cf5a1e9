"""Difficulty of each window of the training split: one score, low for easy ones.

Windows don't overlap: window w of T inputs has the tokens [w T, w T + T], and its score is a mean over its T targets,
which are all but the first. Every score is computed in blocks of windows, so memory stays bounded however long the
stream is.

Legend: W = windows, T = tokens per sequence, V = entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

BLOCK_TOKENS = 2**20
"""Tokens per block."""
BIGRAM_BUCKETS = 16_777_213
"""Most counters of the bigram model (128 MiB); a prime, so that pairs that share one have nothing else in common."""
SMOOTHING = 0.1
"""k of the bigram model's add-k smoothing."""


def count_windows(tokens: np.ndarray, sequence_length: int) -> int:
    """W: windows that have a score."""
    return (len(tokens) - 1) // sequence_length


def window_losses(
    losses: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray, sequence_length: int, *, batch_size: int
) -> np.ndarray:
    """What `losses` makes of every window, float64 of shape (W,).

    Args:
        losses: from windows, int64 of shape (at most batch_size, T + 1), to their mean losses, shape (rows,).
        tokens: the stream, shape (num_tokens,).
        sequence_length: T.
        batch_size: windows given to `losses` at once.
    """
    scores = np.empty(count_windows(tokens, sequence_length))
    for first in range(0, len(scores), batch_size):
        starts = np.arange(first, min(first + batch_size, len(scores))) * sequence_length
        windows = tokens[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int64)
        scores[first : first + len(starts)] = losses(windows)
    return scores


def length_scores(tokens: np.ndarray, sequence_length: int, boundary_token_id: int) -> np.ndarray:
    """Mean number of tokens, boundary included, of the documents that a window's targets lie in, shape (W,)."""
    ends = [first + 1 + np.flatnonzero(block == boundary_token_id) for first, block in _blocks(tokens)]
    bounds = np.unique(np.concatenate([[0], *ends, [len(tokens)]]))  # the last document may have no boundary token
    lengths = np.diff(bounds)
    scores = np.empty(count_windows(tokens, sequence_length))
    rows = _block_rows(sequence_length)
    for first in range(0, len(scores), rows):
        last = min(first + rows, len(scores))
        targets = np.arange(first * sequence_length, last * sequence_length) + 1
        document = np.searchsorted(bounds, targets, side="right") - 1
        scores[first:last] = lengths[document].reshape(-1, sequence_length).mean(axis=1)
    return scores


def rarity_scores(tokens: np.ndarray, sequence_length: int) -> np.ndarray:
    """Mean negative log of the share that a window's targets have of all tokens, nats, shape (W,).

    The word rarity of arXiv 1903.09848, which sums where this takes the mean: windows are equally long.
    """
    counts = _unigram_counts(tokens)
    surprise = -np.log(np.maximum(counts, 1) / len(tokens))
    return window_losses(
        lambda windows: surprise[windows[:, 1:]].mean(axis=1),
        tokens,
        sequence_length,
        batch_size=_block_rows(sequence_length),
    )


def bigram_scores(tokens: np.ndarray, sequence_length: int) -> np.ndarray:
    """Mean loss, nats per token, of a bigram model that counted the stream itself, shape (W,).

    P(b | a) = (count(a b) + k) / (count(a) + k V). Where V x V pairs don't fit into BIGRAM_BUCKETS counters, some pairs
    share one: a rare pair may then look as frequent as another, at most as frequent as its first token.
    """
    counts = _unigram_counts(tokens)
    vocabulary = len(counts)
    buckets = min(vocabulary**2, BIGRAM_BUCKETS)
    pair_counts = np.zeros(buckets, np.int64)
    for first, block in _blocks(tokens):
        following = tokens[first + 1 : first + 1 + len(block)]
        np.add.at(pair_counts, _pairs(block[: len(following)], following, vocabulary, buckets), 1)

    def losses(windows: np.ndarray) -> np.ndarray:
        before, after = windows[:, :-1], windows[:, 1:]
        first_count = counts[before]
        pair_count = np.minimum(pair_counts[_pairs(before, after, vocabulary, buckets)], first_count)
        return -np.log((pair_count + SMOOTHING) / (first_count + SMOOTHING * vocabulary)).mean(axis=1)

    return window_losses(losses, tokens, sequence_length, batch_size=_block_rows(sequence_length))


def _pairs(before: np.ndarray, after: np.ndarray, vocabulary: int, buckets: int) -> np.ndarray:
    return (before.astype(np.int64) * vocabulary + after) % buckets


def _unigram_counts(tokens: np.ndarray) -> np.ndarray:
    """Occurrences of each token up to the highest one, int64 of shape (V,)."""
    counts = np.zeros(int(tokens.max()) + 1, np.int64)
    for _, block in _blocks(tokens):
        counts += np.bincount(block, minlength=len(counts))
    return counts


def _blocks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(tokens), BLOCK_TOKENS):
        yield first, tokens[first : first + BLOCK_TOKENS]


def _block_rows(sequence_length: int) -> int:
    return max(1, BLOCK_TOKENS // sequence_length)
