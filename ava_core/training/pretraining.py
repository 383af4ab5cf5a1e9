"""Pretraining: the next token of packed text, in windows of one token stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ava_core.config.train import TrainConfig
from ava_core.data.batches import document_ids
from ava_core.data.curriculum import CurriculumBatches
from ava_core.losses import UnifiedLoss
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.prediction_heads import attach_prediction_heads
from ava_core.training.batch import Batch
from ava_core.training.objective import ObjectiveLoss


class NextToken:
    """The loss of `train.loss` over the labelled tokens: that of pretraining, and of all that imitates text.

    Gives the model that loss and, where it predicts further tokens, the heads for them; to be built before memory is
    planned and the optimiser is made.

    Raises:
        ValueError: `train.loss.early_end_weight` is set, and no token ends a document.
    """

    def __init__(self, model: EnhancedMoEForCausalLM, config: TrainConfig) -> None:
        end = model.config.eos_token_id
        model.loss_function = UnifiedLoss.from_config(
            config.loss,
            balance_loss_weight=model.config.balance_loss_weight,
            router_z_loss_weight=model.config.router_z_loss_weight,
            router_diversity_weight=model.config.router_diversity_weight,
            end_token_id=end if isinstance(end, int) else None,
            teacher=config.teacher if config.teacher.model is not None else None,
        )
        if model.loss_function.multi_token is not None and model.prediction_heads is None:
            attach_prediction_heads(model, config.loss.multi_token_depth)

    def count(self, batch: Batch) -> int:
        """Labelled tokens."""
        return batch.num_labels

    def loss(self, model: nn.Module, batch: Batch) -> ObjectiveLoss:
        """`train_loss` is the cross-entropy, in nats per labelled token; the other parts are by their own names."""
        output = model(**batch.model_inputs, return_logits=False)
        parts = {"train_loss" if name == "cross_entropy" else name: part for name, part in output.loss_parts.items()}
        return ObjectiveLoss(
            total=output.loss, auxiliary=output.aux_loss, parts=parts, routing=output.router_statistics
        )


@dataclass(frozen=True)
class StreamBatches:
    """The windows of a token stream as batches in which every token is predicted.

    Attributes:
        order: which windows, and when.
        boundary_token_id: the token that ends a document.
    """

    order: CurriculumBatches
    boundary_token_id: int

    def batch(self, step: int, rank: int = 0, ranks: int = 1, passed_over: int = 0) -> Batch:
        """As in `CurriculumBatches.batch`."""
        drawn = self.order.batch(step, rank, ranks, passed_over=passed_over)
        return window_batch(drawn.windows, self.boundary_token_id, drawn.figures)

    def record(self, step: int) -> dict[str, Any]:
        """As in `CurriculumBatches.record`."""
        return self.order.record(step)

    def resumed(self, step: int, record: Mapping[str, Any]) -> Self:
        """As in `CurriculumBatches.resumed`."""
        return replace(self, order=self.order.resumed(step, record))


def window_batch(windows: np.ndarray, boundary_token_id: int, figures: dict[str, float] | None = None) -> Batch:
    """The batch of windows (B, S + 1), int64: each token but the first is the label of the one before."""
    tokens = torch.from_numpy(windows)
    return Batch(
        input_ids=tokens[:, :-1],
        labels=tokens[:, 1:],
        document_ids=packed_document_ids(windows[:, :-1], boundary_token_id),
        figures=figures or {},
    )


def packed_document_ids(inputs: np.ndarray, boundary_token_id: int) -> Tensor | None:
    """Document of each input (B, S) as a tensor; None if no window holds a boundary, so that no mask is needed."""
    ids = document_ids(inputs, boundary_token_id)
    return torch.from_numpy(ids) if ids.any() else None
