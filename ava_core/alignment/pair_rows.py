"""Pairs of answers as batches: whole pairs in rows of one length, and what of a row belongs to which answer.

Legend: B = rows, S = tokens per row, D = answers per row at most, two for each pair: the preferred one, and the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ava_core.alignment.packing import PackedRows
from ava_core.losses import IGNORE_INDEX
from ava_core.training.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch(Batch):
    """Rows of whole pairs.

    Attributes:
        pairs: (B,), int64: pairs of each row.
        ends: (B, D), int64: position of each answer's last token; 0 where there is none.
        reference: (B, D), float32: log-probability of each answer under the model that the training began from; 0 where
            that isn't needed.
    """

    pairs: Tensor
    ends: Tensor
    reference: Tensor

    @property
    def num_pairs(self) -> int:
        """Of all rows."""
        return int(self.pairs.sum())

    @property
    def present(self) -> Tensor:
        """(B, D / 2), bool: where there is a pair."""
        return torch.arange(self.ends.shape[1] // 2, device=self.pairs.device) < self.pairs[:, None]

    def sides(self, values_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the preferred answers, and of the others: (N,) each, of the N pairs."""
        both = values_BD.unflatten(1, (-1, 2))[self.present]
        return both[:, 0], both[:, 1]

    def answer_log_probs(self, logits_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer given its prompt, float32, and the number of its tokens: (B, D) both.

        Args:
            logits_BSV: of a causal model, for these rows.
        """
        assert self.document_ids is not None
        losses = functional.cross_entropy(
            logits_BSV.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        ).view_as(self.labels)
        # What pads a row out is a document of its own, and without labels.
        answers = self.document_ids.clamp(max=self.ends.shape[1] - 1)
        empty = losses.new_zeros(self.ends.shape)
        learnt = (self.labels != IGNORE_INDEX).to(losses.dtype)
        return empty.scatter_add(1, answers, -losses), empty.scatter_add(1, answers, learnt)


@dataclass(frozen=True, eq=False)
class PairRows:
    """Packed pairs.

    Attributes:
        packed: R rows, whose conversations are answers, two of a pair after each other.
        pairs: (R,), int64.
        ends: (R, D), int64, as in `PairBatch`.
        reference: (R, D), float32, as in `PairBatch`.
    """

    packed: PackedRows
    pairs: np.ndarray
    ends: np.ndarray
    reference: np.ndarray

    @classmethod
    def of(cls, packed: PackedRows) -> PairRows:
        """With no reference yet."""
        counts = np.array([len(members) for members in packed.members])
        shape = (len(packed), int(counts.max()))
        # The last position with a document's number.
        steps = np.arange(packed.input_ids.shape[1])
        ends = np.stack([np.where(packed.document_ids == d, steps, 0).max(1) for d in range(shape[1])], axis=1)
        ends[np.arange(shape[1]) >= counts[:, None]] = 0
        return cls(packed, counts // 2, ends, np.zeros(shape, np.float32))

    def __len__(self) -> int:
        """R."""
        return len(self.packed)

    def batch(self, rows: np.ndarray | Sequence[int]) -> PairBatch:
        """The batch of some rows, in their order."""
        plain = self.packed.batch(np.asarray(rows))
        return PairBatch(
            input_ids=plain.input_ids,
            labels=plain.labels,
            document_ids=plain.document_ids,
            pairs=torch.from_numpy(self.pairs[rows]),
            ends=torch.from_numpy(self.ends[rows]),
            reference=torch.from_numpy(self.reference[rows]),
        )

    def referred_to(self, reference: np.ndarray) -> Self:
        """The same with these log-probabilities."""
        return replace(self, reference=reference)
