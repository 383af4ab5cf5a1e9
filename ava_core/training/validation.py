"""Loss on a held-out split: every byte scored once, in windows that don't overlap, with the training context."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ava_core.data.batches import document_ids, scoring_windows
from ava_core.data.shards import ShardedSplit
from ava_core.losses import IGNORE_INDEX, UnifiedLoss
from ava_core.models import EnhancedMoEForCausalLM


def packed_document_ids(inputs: np.ndarray, boundary_token_id: int) -> Tensor | None:
    """Document of each input (B, S) as a tensor; None if no window holds a boundary, so that no mask is needed."""
    ids = document_ids(inputs, boundary_token_id)
    return torch.from_numpy(ids) if ids.any() else None


@torch.no_grad()
def mean_loss(
    model: EnhancedMoEForCausalLM,
    split: ShardedSplit,
    sequence_length: int,
    *,
    batch_size: int,
    limit: int | None = None,
) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per token, and the number of tokens scored.

    Whatever loss the model is trained with: no label smoothing, no temperature, no other part.

    Args:
        model: in any mode; it is left in evaluation mode.
        split: the tokens to score.
        sequence_length: S, the training context.
        batch_size: windows scored at once.
        limit: score only so many windows, evenly spaced.
    """
    model.eval()
    device, plain = next(model.parameters()).device, UnifiedLoss.standard()
    total, count = 0.0, 0
    for inputs, labels, ids in _batches(split, sequence_length, batch_size, limit):
        output = model(
            input_ids=inputs.to(device),
            shift_labels=labels.to(device),
            document_ids=None if ids is None else ids.to(device),
            loss_function=plain,
            return_logits=False,
            use_cache=False,
        )
        tokens = int((labels != IGNORE_INDEX).sum())
        total += float(output.loss_parts["cross_entropy"]) * tokens
        count += tokens
    return total / count, count


def _batches(
    split: ShardedSplit, sequence_length: int, batch_size: int, limit: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    windows = scoring_windows(
        split.tokens, sequence_length, split.boundary_token_id, batch_size=batch_size, limit=limit
    )
    for batch in windows:
        labels = np.where(batch.mask, batch.targets, IGNORE_INDEX)
        yield (
            torch.from_numpy(batch.inputs),
            torch.from_numpy(labels),
            packed_document_ids(batch.inputs, split.boundary_token_id),
        )
