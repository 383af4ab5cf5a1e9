"""Batches as pure functions of (seed, step), and windows that score every token once.

Legend: B = sequences, T = tokens per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ava_core.errors import AvaError


@dataclass(frozen=True)
class WindowBatch:
    """The windows that one rank trains on in one optimiser step.

    Attributes:
        windows: int64 array of shape (B, L + 1): inputs are `[:, :-1]`, targets `[:, 1:]`. L may be shorter than
            train.sequence_length; B is then larger, so that a batch keeps its number of tokens.
        starts: (B,), int64: where in the stream each window begins.
        figures: the curriculum's values at this step, for the history; of the global batch, the same on every rank.
    """

    windows: np.ndarray
    starts: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingBatches:
    """Training batches from one token stream; there is no loader state, so resuming at any step is exact.

    In each epoch the stream, from an offset drawn for that epoch, is cut into windows of T inputs that don't overlap;
    the windows are dealt out in an order drawn for that epoch. A batch may end one epoch and begin the next.

    Attributes:
        tokens: the stream, shape (num_tokens,).
        sequence_length: T.
        global_batch_size: B over all ranks.
        seed: seeds the offsets and orders.
        stream: fingerprint of the stream.

    Raises:
        AvaError: the stream is shorter than one window.
    """

    tokens: np.ndarray
    sequence_length: int
    global_batch_size: int
    seed: int
    stream: str = ""

    def __post_init__(self) -> None:
        if len(self.tokens) < self.sequence_length + 1:
            raise AvaError(
                f"the training split has {len(self.tokens)} tokens: train.sequence_length = {self.sequence_length}"
                f" needs at least {self.sequence_length + 1}: give more text or shorter sequences"
            )

    @property
    def windows_per_epoch(self) -> int:
        """Windows of one epoch; the same for every epoch, so that a step's epoch follows from its number."""
        return max(1, len(self.tokens) // self.sequence_length - 1)

    @property
    def order(self) -> dict[str, Any]:
        """All that determines the windows and their order, as JSON values."""
        return {
            "stream": self.stream,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "windows_per_epoch": self.windows_per_epoch,
        }

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """The windows of one optimiser step; the batches of all ranks, put together, are the one of a single rank.

        Returns:
            int64 array of shape (B / ranks, T + 1): inputs are `[:, :-1]`, targets `[:, 1:]`.

        Raises:
            AvaError: B is not a multiple of `ranks`.
        """
        if self.global_batch_size % ranks:
            raise AvaError(
                f"train.global_batch_size = {self.global_batch_size}: must be a multiple of the {ranks} ranks"
            )
        share = self.global_batch_size // ranks
        return self.windows(self.starts(step * self.global_batch_size + rank * share, share))

    def starts(self, first: int, count: int) -> np.ndarray:
        """Index in the stream of the first token of the windows dealt out as numbers `first`, `first` + 1, ...

        The numbers run on over all epochs. Returns an int64 array of shape (count,).
        """
        epochs, positions = np.divmod(np.arange(first, first + count), self.windows_per_epoch)
        slack = len(self.tokens) - 1 - self.windows_per_epoch * self.sequence_length
        starts = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            max_offset = min(slack, self.sequence_length - 1)
            offset, order = _epoch_order(self.seed, int(epoch), self.windows_per_epoch, max_offset)
            here = epochs == epoch
            starts[here] = offset + order[positions[here]] * self.sequence_length
        return starts

    def windows(self, starts: np.ndarray) -> np.ndarray:
        """The windows that begin at `starts` (n,), int64 of shape (n, T + 1)."""
        return self.tokens[starts[:, None] + np.arange(self.sequence_length + 1)].astype(np.int64)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, windows: int, max_offset: int) -> tuple[int, np.ndarray]:
    """Offset and order of the windows in one epoch."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return int(generator.integers(0, max_offset + 1)), generator.permutation(windows)


@dataclass(frozen=True)
class ScoringBatch:
    """Windows to score.

    Attributes:
        inputs: int64 array of shape (B, T).
        targets: int64 array of shape (B, T); `targets[b, t]` follows `inputs[b, t]`.
        mask: bool array of shape (B, T); False for the padding of the last window, which is not to be scored.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


def scoring_windows(
    tokens: np.ndarray, sequence_length: int, boundary_token_id: int, *, batch_size: int = 16, limit: int | None = None
) -> Iterator[ScoringBatch]:
    """Windows that don't overlap, in which every token of the stream is a target exactly once.

    The first token's context is one boundary token, as if a document had ended before it. Total nats over all windows
    / ln 2 / bytes of the text are the bits per byte.

    Args:
        tokens: the stream, shape (num_tokens,).
        sequence_length: T, the training context.
        boundary_token_id: the token that ends a document.
        batch_size: B, at most.
        limit: score only so many windows, evenly spaced over the stream; None: all of them.
    """
    windows = count_scoring_windows(tokens, sequence_length)
    chosen = np.arange(windows) if limit is None or limit >= windows else np.arange(limit) * windows // limit
    for first in range(0, len(chosen), batch_size):
        rows = chosen[first : first + batch_size]
        shape = (len(rows), sequence_length)
        inputs, targets = np.full(shape, boundary_token_id, np.int64), np.full(shape, boundary_token_id, np.int64)
        mask = np.zeros(shape, bool)
        for row, window in enumerate(rows):
            start = int(window) * sequence_length
            target = tokens[start : start + sequence_length]
            targets[row, : len(target)] = target
            mask[row, : len(target)] = True
            inputs[row, start == 0 : len(target)] = tokens[max(start - 1, 0) : start + len(target) - 1]
        yield ScoringBatch(inputs, targets, mask)


def count_scoring_windows(tokens: np.ndarray, sequence_length: int) -> int:
    """Number of windows that `scoring_windows` makes without a limit."""
    return -(-len(tokens) // sequence_length)


def document_ids(inputs: np.ndarray, boundary_token_id: int) -> np.ndarray:
    """Number, from 0 in each row, of the document that each input belongs to, shape as `inputs`.

    A boundary token as input begins the document that follows it: what it predicts is that document's first token.
    """
    return np.cumsum(inputs == boundary_token_id, axis=-1) - (inputs[..., :1] == boundary_token_id)


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Cross-entropy summed over all tokens of a text, in bits per byte of that text."""
    return total_nats / math.log(2.0) / num_bytes
