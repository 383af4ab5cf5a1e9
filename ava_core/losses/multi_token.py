"""Multi-token prediction: extra heads on the shared trunk. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ava_core.losses.chunked import chunked_head_loss
from ava_core.losses.rows import IGNORE_INDEX
from ava_core.losses.token import CrossEntropy


def future_labels(labels_BS: Tensor, depth: int, document_ids_BS: Tensor | None = None) -> Tensor:
    """Labels `depth` positions further on, (B, S), from labels that are aligned with the logits.

    IGNORE_INDEX where a label up to there is ignored, or where the input there is of another document.
    """
    ahead_BS = torch.full_like(labels_BS, IGNORE_INDEX)
    if depth >= labels_BS.shape[1]:
        return ahead_BS
    reached = (labels_BS != IGNORE_INDEX).unfold(1, depth + 1, 1).all(dim=-1)
    if document_ids_BS is not None:
        reached = reached & (document_ids_BS[:, depth:] == document_ids_BS[:, :-depth])
    ahead_BS[:, :-depth] = torch.where(reached, labels_BS[:, depth:], IGNORE_INDEX)
    return ahead_BS


@dataclass(slots=True, kw_only=True)
class MultiToken:
    """weight / depth times the sum of the heads' cross-entropies (arXiv 2404.19737, eq. 2; weighted as in DeepSeek-V3,
    arXiv 2412.19437, eq. 25). Head d predicts the token d after the next one.

    Each head costs what the output head does. Its logits exist in chunks only. No label smoothing, no temperature.
    """

    weight: float
    depth: int = 1

    @property
    def names(self) -> list[str]:
        """Name of each head's part of the loss."""
        return [f"multi_token_{d}" for d in range(1, self.depth + 1)]

    def __call__(
        self, hidden: Sequence[Tensor], weight_VD: Tensor, labels_BS: Tensor, document_ids_BS: Tensor | None
    ) -> list[Tensor]:
        """Sum over tokens of each head's cross-entropy, in nats; `hidden` has (B, S, D) of each head.

        Raises:
            ValueError: there is another number of heads than `depth`.
        """
        if len(hidden) != self.depth:
            raise ValueError(f"prediction heads = {len(hidden)}: must be multi_token_depth = {self.depth}")
        sums = []
        for d, hidden_BSD in enumerate(hidden, 1):
            labels_T = future_labels(labels_BS, d, document_ids_BS).reshape(-1)
            hidden_TD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
            sums.append(chunked_head_loss(hidden_TD, weight_VD, labels_T, [CrossEntropy()])[0])
        return sums
