"""What the engine trains on in one optimiser step, and where a training takes it from.

Legend: B = sequences, S = tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from operator import itemgetter
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ava_core.losses import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one rank trains on in one optimiser step; of the same shape on all ranks.

    An objective that needs more than this derives a batch of its own: all its tensors have B rows, and rows that belong
    together, such as the two sides of a pair, follow each other.

    Attributes:
        input_ids: (B, S), int64.
        labels: (B, S), int64, aligned with the inputs: what is to be predicted after each of them. IGNORE_INDEX where
            nothing is to be learnt.
        document_ids: (B, S), the document of each input, beyond which attention doesn't reach; None: one document per
            sequence.
        figures: what the history says of the batch; of all ranks' together, the same on each.
    """

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, with a label or without."""
        return self.input_ids.numel()

    @property
    def num_labels(self) -> int:
        """Positions where something is to be learnt."""
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def model_inputs(self) -> dict[str, Tensor | None]:
        """What a causal model is called with for it."""
        return {"input_ids": self.input_ids, "shift_labels": self.labels, "document_ids": self.document_ids}

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""
        return self._with_each(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list[Self]:
        """Micro-batches of `size` sequences, in their order.

        Raises:
            ValueError: B isn't a multiple of `size`.
        """
        if len(self) % size:
            B, S = self.input_ids.shape
            raise ValueError(f"batch of {B} sequences of {S} tokens: must be a multiple of {size}")
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [self._with_each(itemgetter(rows)) for rows in parts]

    def split_within(self, most: int) -> list[Self]:
        """Micro-batches of equal size, of at most `most` sequences, in their order."""
        return self.split(next(size for size in range(min(len(self), most), 0, -1) if len(self) % size == 0))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **values | changed)


class Batches(Protocol):
    """The batches of a training in their order: a function of the step and of where a checkpoint ended."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> Batch:
        """That of optimiser step `step`, from 0; those of all ranks, put together, are the one of a single rank.

        Args:
            step: its index.
            rank, ranks: whose share.
            passed_over: batches that rewinds have skipped, for an order that is drawn from the step's number alone.
        """
        ...

    def record(self, step: int) -> dict[str, Any]:
        """What a checkpoint before batch `step` says of what was dealt out, of JSON types."""
        ...

    def resumed(self, step: int, record: Mapping[str, Any]) -> Self:
        """The same, from batch `step` on, after what `record` says was dealt out.

        Raises:
            IntegrityError: the record doesn't say it.
        """
        ...
