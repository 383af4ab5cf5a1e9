"""Loss on a held-out split: every byte scored once, in windows that don't overlap, with the training context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ava_core.config.train import TrainConfig
from ava_core.data.batches import bits_per_byte, scoring_windows
from ava_core.data.shards import ShardedSplit
from ava_core.losses import IGNORE_INDEX, UnifiedLoss
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.batch import Batch
from ava_core.training.pretraining import packed_document_ids


@dataclass(frozen=True)
class SplitValidation:
    """The loss on a split of the shards: what pretraining measures.

    Attributes:
        split: the one that is held out.
        config: the training section, for the context, the windows at once and the part that is measured on the way.
    """

    split: ShardedSplit
    config: TrainConfig

    def measure(self, model: EnhancedMoEForCausalLM, *, whole: bool) -> dict[str, float]:
        """Validation loss in nats per token, and bits per byte; of a part of the split, the bytes are in proportion to
        its tokens."""
        config = self.config
        limit = None if whole else config.evaluate_sequences
        loss, count = mean_loss(
            model, self.split, config.sequence_length, batch_size=config.micro_batch_size, limit=limit
        )
        num_bytes = self.split.num_bytes * (count / len(self.split.tokens))
        return {"validation_loss": loss, "validation_bits_per_byte": bits_per_byte(loss * count, num_bytes)}


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
    return mean_loss_of(model, _batches(split, sequence_length, batch_size, limit))


@torch.no_grad()
def mean_loss_of(model: EnhancedMoEForCausalLM, batches: Iterable[Batch]) -> tuple[float, int]:
    """As `mean_loss`, over the labelled tokens of batches."""
    model.eval()
    device, plain = next(model.parameters()).device, UnifiedLoss.standard()
    total, count = 0.0, 0
    for batch in batches:
        output = model(**batch.to(device).model_inputs, loss_function=plain, return_logits=False, use_cache=False)
        total += float(output.loss_parts["cross_entropy"]) * batch.num_labels
        count += batch.num_labels
    return total / count, count


def _batches(split: ShardedSplit, sequence_length: int, batch_size: int, limit: int | None) -> Iterator[Batch]:
    windows = scoring_windows(
        split.tokens, sequence_length, split.boundary_token_id, batch_size=batch_size, limit=limit
    )
    for batch in windows:
        labels = np.where(batch.mask, batch.targets, IGNORE_INDEX)
        yield Batch(
            input_ids=torch.from_numpy(batch.inputs),
            labels=torch.from_numpy(labels),
            document_ids=packed_document_ids(batch.inputs, split.boundary_token_id),
        )
