"""What gives texts their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Embedder(Protocol):
    """Texts to unit vectors.

    Attributes:
        identity: tells its vectors from those of others: its name, and a digest of what computes them.
        dimension: of its vectors.
        max_tokens: longest text that it reads, by its own tokenizer; None: unknown.
    """

    @property
    def identity(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int | None: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Tokens of each text by its own tokenizer; None: unknown."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), dimension) float32, of unit length; what a text has beyond `max_tokens` is left out."""
        ...


def in_batches(
    lengths: Sequence[int], max_tokens: int, forward: Callable[[list[int]], np.ndarray], dimension: int
) -> np.ndarray:
    """The vectors of texts, of which neighbours in length are computed together, so that little is padded.

    Args:
        lengths: tokens of each text.
        max_tokens: of a batch, padding counted.
        forward: vectors of the texts with these numbers.
        dimension: of a vector.

    Returns:
        (len(lengths), dimension) float32.
    """
    vectors = np.empty((len(lengths), dimension), np.float32)
    order = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * lengths[number] > max_tokens:
            vectors[batch] = forward(batch)
            batch = []
        batch.append(number)
    if batch:
        vectors[batch] = forward(batch)
    return vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions with length 1, float32; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
