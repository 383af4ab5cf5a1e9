"""Losses per predicted token, computed from logits. Shapes: see `ava_core.models.shapes`.

To add one, write a class with `name`, `weight` and `__call__`, and hand it to `UnifiedLoss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.losses.rows import IGNORE_INDEX, Rows


class TokenLoss(Protocol):
    """A part of the loss that is a mean over predicted tokens."""

    name: str
    weight: float

    def __call__(self, rows: Rows) -> Tensor:
        """Loss of each token, (T,); 0 where the label is IGNORE_INDEX."""
        ...


@dataclass(slots=True, kw_only=True)
class CrossEntropy:
    """-log p(label), in nats; with smoothing e, (1 - e) of that plus e times the mean over the vocabulary
    (arXiv 1512.00567, section 7). p is the softmax of the logits divided by `temperature`: the model learns logits
    that fit after the division, so a temperature above 1 makes its own predictions, which have none, sharper."""

    name: str = "cross_entropy"
    weight: float = 1.0
    label_smoothing: float = 0.0
    temperature: float = 1.0

    def __call__(self, rows: Rows) -> Tensor:
        logits_TV = rows.logits_TV if self.temperature == 1 else rows.logits_TV / self.temperature
        return F.cross_entropy(
            logits_TV,
            rows.labels_T,
            reduction="none",
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.label_smoothing,
        )


@dataclass(slots=True, kw_only=True)
class LogitZLoss:
    """logsumexp(logits)^2: keeps the softmax's normaliser near one (PaLM, arXiv 2204.02311, section 5)."""

    name: str = "logit_z_loss"
    weight: float = 1e-4

    def __call__(self, rows: Rows) -> Tensor:
        return rows.log_sum_T.square() * rows.predicted_T


@dataclass(slots=True, kw_only=True)
class FocalLoss:
    """-(1 - p)^gamma log p(label): confident predictions count less (arXiv 1708.02002, eq. 4).

    Beside the cross-entropy it gives hard tokens more of the gradient and leaves the model less confident
    (arXiv 2002.09437, section 4). gamma = 0 is the cross-entropy. (1 - p)^gamma is taken as exp(gamma log(1 - p)),
    whose gradient is finite for every gamma, also below 1. Costs three passes over the logits.
    """

    name: str = "focal"
    weight: float = 1.0
    gamma: float = 2.0

    def __call__(self, rows: Rows) -> Tensor:
        nll_T = F.cross_entropy(rows.logits_TV, rows.labels_T, reduction="none", ignore_index=IGNORE_INDEX)
        every_T = torch.arange(len(nll_T), device=nll_T.device)
        return (-self.gamma * rows.unlikelihood(every_T, rows.labels_T.clamp_min(0))).exp() * nll_T


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
