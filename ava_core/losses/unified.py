"""The training objective: a weighted sum of named parts, each reported by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ava_core.losses.chunked import chunked_head_loss
from ava_core.losses.token import IGNORE_INDEX, CrossEntropy, LogitZLoss, TokenLoss


@dataclass(slots=True, kw_only=True)
class LossOutput:
    """Attributes:
    total: scalar to differentiate.
    parts: every part by name, unweighted and detached (nats per token for the cross-entropy).
    """

    total: Tensor
    parts: dict[str, Tensor]


class UnifiedLoss:
    """Token losses, averaged over predicted tokens, plus auxiliary losses that the model computed itself.

    Args:
        token_losses: parts computed from logits; see `ava_core.losses.token.TokenLoss`.
        auxiliary_weights: weight of each auxiliary part by name. A part without a weight is refused; a weight
            without a part is allowed, for not every model has every part.

    Raises:
        ValueError: two parts have one name, or a weight is negative.
    """

    def __init__(self, token_losses: Sequence[TokenLoss], auxiliary_weights: Mapping[str, float] | None = None):
        self.token_losses = list(token_losses)
        self.auxiliary_weights = dict(auxiliary_weights or {})
        names = [loss.name for loss in self.token_losses] + list(self.auxiliary_weights)
        if len(set(names)) < len(names):
            raise ValueError(f"loss parts = {names}: must have different names")
        weights = [loss.weight for loss in self.token_losses] + list(self.auxiliary_weights.values())
        for name, weight in zip(names, weights, strict=True):
            if weight < 0:
                raise ValueError(f"weight of loss part {name} = {weight}: must be >= 0")

    @classmethod
    def standard(
        cls,
        *,
        label_smoothing: float = 0.0,
        logit_z_loss_weight: float = 0.0,
        balance_loss_weight: float = 0.0,
        router_z_loss_weight: float = 0.0,
    ) -> UnifiedLoss:
        """Cross-entropy, z-loss on logits (left out at weight 0), and the two losses of the routers."""
        token_losses: list[TokenLoss] = [CrossEntropy(label_smoothing=label_smoothing)]
        if logit_z_loss_weight:
            token_losses.append(LogitZLoss(weight=logit_z_loss_weight))
        weights = {"balance_loss": balance_loss_weight, "router_z_loss": router_z_loss_weight}
        return cls(token_losses, weights)

    def __call__(
        self,
        labels: Tensor,
        *,
        logits: Tensor | None = None,
        hidden: Tensor | None = None,
        head_weight_VD: Tensor | None = None,
        auxiliary: Mapping[str, Tensor] | None = None,
        num_items: Tensor | int | None = None,
    ) -> LossOutput:
        """Compute the loss of `labels` (...), aligned with `logits` (..., V), or with `hidden` (..., D).

        With `hidden` and `head_weight_VD` the logits exist in chunks only. `num_items` replaces the number of
        predicted tokens as the divisor, for batches that are accumulated.

        Raises:
            ValueError: neither or both of `logits` and `hidden` given; an auxiliary part has no weight.
        """
        if (logits is None) == (hidden is None):
            raise ValueError("UnifiedLoss: exactly one of logits and hidden must be given")
        labels_T = labels.reshape(-1)
        if num_items is None:
            num_items = (labels_T != IGNORE_INDEX).sum().clamp_min(1)
        parts: dict[str, Tensor] = {}
        if hidden is not None:
            if head_weight_VD is None:
                raise ValueError("UnifiedLoss: hidden must come with head_weight_VD")
            hidden_TD = hidden.reshape(-1, hidden.shape[-1])
            total, sums = chunked_head_loss(hidden_TD, head_weight_VD, labels_T, self.token_losses)
            total = total / num_items
            for loss, part in zip(self.token_losses, sums, strict=True):
                parts[loss.name] = part / num_items
        elif logits is not None:
            wide = torch.promote_types(logits.dtype, torch.float32)
            total = logits.new_zeros((), dtype=wide)
            logits_TV = logits.reshape(-1, logits.shape[-1]).to(wide)
            for loss in self.token_losses:
                part = loss(logits_TV, labels_T).sum() / num_items
                total = total + loss.weight * part
                parts[loss.name] = part.detach()
        for name, part in (auxiliary or {}).items():
            if name not in self.auxiliary_weights:
                known = ", ".join(self.auxiliary_weights) or "none"
                raise ValueError(f"auxiliary loss {name!r} has no weight: known are {known}")
            total = total + self.auxiliary_weights[name] * part
            parts[name] = part.detach()
        return LossOutput(total=total, parts=parts)
