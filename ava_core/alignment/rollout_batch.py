"""The answers that a policy gave, as a batch to learn from.

Legend: B = answers, W = positions of a prompt, padded on its left; N = tokens of an answer, padded on its right;
S = W + N - 1 positions that are read; L = layers, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ava_core.losses import IGNORE_INDEX
from ava_core.models.routing import Routes
from ava_core.training.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch(Batch):
    """Answers to learn from; labels are the answers' tokens.

    Attributes:
        attention_mask: (B, S), 1 for the prompt and the answer up to its end.
        advantages: (B,), float32: what an answer is worth beside the others to its prompt.
        sampled: (B, S), float32: log-probability of each label when it was sampled; 0 where there is none.
        reference: (B, S), float32: the same under the model that the training began from; empty (B, 0) without need.
        expert_ids, used, selected: (B, S, L, K): the rollout's routes; empty (B, 0, L, K) if they aren't replayed.
    """

    attention_mask: Tensor
    advantages: Tensor
    sampled: Tensor
    reference: Tensor
    expert_ids: Tensor
    used: Tensor
    selected: Tensor

    @property
    def routes(self) -> tuple[Routes, ...] | None:
        """The rollout's routes, as a model takes them."""
        if not self.expert_ids.shape[1]:
            return None
        layers = zip(
            *(part.flatten(0, 1).unbind(1) for part in (self.expert_ids, self.used, self.selected)), strict=True
        )
        return tuple(Routes(expert_ids_TK=ids, used_TK=used, selected_TK=selected) for ids, used, selected in layers)

    def label_log_probs(self, logits_BSV: Tensor, temperature: float) -> Tensor:
        """(B, S), float32: of each label, at the temperature of the sampling; 0 where there is none."""
        scaled = logits_BSV.float().flatten(0, 1) / temperature
        losses = functional.cross_entropy(scaled, self.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return -losses.view_as(self.labels)


def batch_of(
    sequences: Tensor, prompt_mask: Tensor, noted: Tensor, stops: Sequence[int], routes: Sequence[Routes]
) -> RolloutBatch:
    """Answers without what they are worth.

    Args:
        sequences: (B, W + N), prompts and what was drawn after them; past its end an answer holds anything.
        prompt_mask: (B, W), 1 for the prompt's own tokens.
        noted: (B, N), float32: log-probability of each drawn token.
        stops: tokens that end an answer, of which they are the last.
        routes: of the positions that were read, per layer; empty: none are replayed.
    """
    width, device = prompt_mask.shape[1], sequences.device
    drawn = sequences[:, width:]
    ended = torch.isin(drawn, torch.tensor(stops, device=device))
    is_answer = (ended.long().cumsum(1) - ended.long()) == 0
    inputs, length = sequences[:, :-1], sequences.shape[1] - 1
    labels = torch.full_like(inputs, IGNORE_INDEX)
    labels[:, width - 1 :] = torch.where(is_answer, drawn, IGNORE_INDEX)
    sampled = torch.zeros(inputs.shape, dtype=torch.float32, device=device)
    sampled[:, width - 1 :] = noted * is_answer
    expert_ids, used, selected = _recorded(routes, len(sequences))
    return RolloutBatch(
        input_ids=inputs,
        labels=labels,
        # The token that ends an answer says nothing of what comes after it, so it needn't be read.
        attention_mask=torch.cat([prompt_mask, (is_answer & ~ended).long()], dim=1)[:, :length],
        advantages=torch.zeros(len(sequences), device=device),
        sampled=sampled,
        reference=inputs.new_zeros((len(sequences), 0), dtype=torch.float32),
        expert_ids=expert_ids,
        used=used,
        selected=selected,
    )


def _recorded(routes: Sequence[Routes], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `Routes` over all layers, (B, S, L, K) each."""
    if not routes:
        empty = torch.zeros((rows, 0, 0, 0), dtype=torch.bool)
        return empty.long(), empty, empty

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(layer, name).unflatten(0, (rows, -1)) for layer in routes], dim=2)

    return stacked("expert_ids_TK"), stacked("used_TK"), stacked("selected_TK")
