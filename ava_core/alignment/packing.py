"""Conversations in rows of one length, whole, and side by side in a row without looking at each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch

from ava_core.alignment.tokens import EncodedConversation
from ava_core.losses import IGNORE_INDEX
from ava_core.training.batch import Batch


def pack(lengths: Sequence[int], row_length: int, seed: int) -> list[list[int]]:
    """Best-fit decreasing: each item goes into the row that it leaves the least room in.

    Items of a length come in an order that is drawn by the seed, so that which ones share a row isn't up to their
    source.

    Returns:
        Positions of the items of each row.

    Raises:
        ValueError: an item is longer than a row.
    """
    if max(lengths, default=0) > row_length:
        raise ValueError(f"lengths: the longest is {max(lengths)}: must be <= row_length = {row_length}")
    drawn = np.random.default_rng(seed).permutation(len(lengths))
    rows: list[list[int]] = []
    left: dict[int, list[int]] = {}
    present: list[int] = []
    for item in sorted(drawn.tolist(), key=lambda position: -lengths[position]):
        place = bisect_left(present, lengths[item])
        if place == len(present):
            rows.append([])
            row, room = len(rows) - 1, row_length
        else:
            room = present[place]
            row = left[room].pop()
            if not left[room]:
                present.pop(place)
        rows[row].append(item)
        remains = room - lengths[item]
        if not left.setdefault(remains, []):
            insort(present, remains)
        left[remains].append(row)
    return rows


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of conversations as arrays (R, S): R rows of S tokens.

    Attributes:
        input_ids: int64; the padding token past the last conversation.
        labels: int64, what is to be predicted after each token; IGNORE_INDEX where that is no answer's token.
        document_ids: int64, the conversation in the row, and one more for the padding.
        num_bytes: (R,), int64: UTF-8 bytes of the answers of a row.
        members: positions of a row's conversations, in their order.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    document_ids: np.ndarray
    num_bytes: np.ndarray
    members: list[list[int]]

    @classmethod
    def of(
        cls,
        conversations: Sequence[EncodedConversation],
        row_length: int,
        padding: int,
        seed: int,
        together: int = 1,
    ) -> PackedRows:
        """Pack conversations.

        Args:
            conversations: whole groups of `together`, none longer than a row.
            row_length: S.
            padding: token at the end of a row.
            seed: of the order of those of one length.
            together: how many that follow each other share a row, in their order.
        """
        lengths = np.array([len(item) for item in conversations]).reshape(-1, together).sum(1).tolist()
        groups = pack(lengths, row_length, seed)
        rows = [[together * group + part for group in row for part in range(together)] for row in groups]
        shape = (len(rows), row_length)
        tokens, labels = np.full(shape, padding), np.full(shape, IGNORE_INDEX)
        ids, sizes = np.zeros(shape, np.int64), np.zeros(len(rows), np.int64)
        for row, members in enumerate(rows):
            start = 0
            for number, member in enumerate(members):
                item = conversations[member]
                end = start + len(item)
                tokens[row, start:end] = item.tokens
                labels[row, start : end - 1] = np.where(item.learnt[1:], item.tokens[1:], IGNORE_INDEX)
                ids[row, start:end] = number
                sizes[row] += item.num_bytes
                start = end
            ids[row, start:] = len(members)
        return cls(tokens, labels, ids, sizes, rows)

    def __len__(self) -> int:
        """R."""
        return len(self.input_ids)

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of some rows, in their order."""
        return Batch(
            input_ids=torch.from_numpy(self.input_ids[rows]),
            labels=torch.from_numpy(self.labels[rows]),
            document_ids=torch.from_numpy(self.document_ids[rows]),
        )


def parts(count: int, size: int) -> list[np.ndarray]:
    """The first `count` rows in parts of at most `size`, to be scored one after the other."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


class Rows(Protocol):
    """Rows that batches are made of."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of some rows, in their order."""
        ...


@dataclass(frozen=True)
class PackedBatches:
    """Batches of packed rows: all of them in an order that is drawn anew for each pass, one pass after the other.

    Attributes:
        rows: what is dealt out.
        size: rows of a batch, of all ranks together.
        seed: of the orders.
    """

    rows: Rows
    size: int
    seed: int

    def batch(self, step: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> Batch:
        """A function of the step, the rank and the seed alone."""
        share = self.size // ranks
        first = (step + passed_over) * self.size + rank * share
        positions = np.arange(first, first + share)
        passes, places = positions // len(self.rows), positions % len(self.rows)
        chosen = np.concatenate([self._order(number)[places[passes == number]] for number in np.unique(passes)])
        return self.rows.batch(chosen)

    def record(self, step: int) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def resumed(self, step: int, record: Mapping[str, Any]) -> Self:
        """The same."""
        return self

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(len(self.rows))
