"""Losses of single predictions, given logits. Shapes: see `ava_core.models.shapes`.

To add one (focal, unlikelihood, ...), write a class with `name`, `weight` and `__call__`, and hand it to
`UnifiedLoss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""Label of a position that has no loss, as everywhere in Transformers."""


class TokenLoss(Protocol):
    """A part of the loss that is a mean over predicted tokens."""

    name: str
    weight: float

    def __call__(self, logits_TV: Tensor, labels_T: Tensor) -> Tensor:
        """Loss of each token, (T,), from float32 logits; 0 where the label is IGNORE_INDEX."""
        ...


@dataclass(slots=True, kw_only=True)
class CrossEntropy:
    """-log p(label), in nats; with smoothing e, (1 - e) of that plus e times the mean over the vocabulary
    (arXiv 1512.00567, section 7)."""

    name: str = "cross_entropy"
    weight: float = 1.0
    label_smoothing: float = 0.0

    def __call__(self, logits_TV: Tensor, labels_T: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_TV,
            labels_T,
            reduction="none",
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
        )


@dataclass(slots=True, kw_only=True)
class LogitZLoss:
    """logsumexp(logits)^2: keeps the softmax's normaliser near one (PaLM, arXiv 2204.02311, section 5)."""

    name: str = "logit_z_loss"
    weight: float = 1e-4

    def __call__(self, logits_TV: Tensor, labels_T: Tensor) -> Tensor:
        return logits_TV.logsumexp(dim=-1).square() * (labels_T != IGNORE_INDEX)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each label, float32, in the labels' shape.

    `logits` is (..., V) and aligned with `labels` (...): the caller shifts. 0 where the label is IGNORE_INDEX.
    """
    nll = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        reduction="none",
        ignore_index=IGNORE_INDEX,
    )
    return nll.view(labels.shape)


def shift_labels(labels_BS: Tensor) -> Tensor:
    """Align labels with the logits that predict them: position s gets label s + 1, the last IGNORE_INDEX."""
    return torch.nn.functional.pad(labels_BS[:, 1:], (0, 1), value=IGNORE_INDEX)
