"""Difficulty of training windows by the loss of a trained model. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from ava_core.data.difficulty import window_losses
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.training.pretraining import packed_document_ids


@torch.no_grad()
def reference_difficulty(
    model: EnhancedMoEForCausalLM,
    tokens: np.ndarray,
    sequence_length: int,
    *,
    vocab_size: int,
    boundary_token_id: int,
    batch_size: int = 8,
) -> np.ndarray:
    """Mean loss in nats per token of each window of the training split, float64 of shape (windows,).

    What `build_batches` takes as `difficulty`.

    Args:
        model: the reference; it is left in evaluation mode.
        tokens: the training split's stream, shape (num_tokens,).
        sequence_length: S, tokens per window.
        vocab_size: entries of the tokenizer that made the tokens.
        boundary_token_id: the token that ends every document.
        batch_size: windows scored at once; their logits (B, S, V) are held.

    Raises:
        AvaError: the model has a smaller vocabulary, or a shorter context.
    """
    config = model.config
    if config.vocab_size < vocab_size:
        raise AvaError(
            f"reference model: vocab_size = {config.vocab_size}: the shards have {vocab_size}: give a model that was"
            " trained with the same tokenizer"
        )
    if config.max_position_embeddings < sequence_length:
        raise AvaError(
            f"reference model: max_position_embeddings = {config.max_position_embeddings}: must be >="
            f" train.sequence_length = {sequence_length}"
        )
    model.eval()
    device = next(model.parameters()).device

    def losses(windows: np.ndarray) -> np.ndarray:
        inputs, targets_BS = windows[:, :-1], torch.from_numpy(windows[:, 1:]).to(device)
        ids = packed_document_ids(inputs, boundary_token_id)
        logits_BSV = model(
            input_ids=torch.from_numpy(inputs).to(device),
            document_ids=None if ids is None else ids.to(device),
            use_cache=False,
        ).logits
        losses_BS = F.cross_entropy(logits_BSV.float().transpose(1, 2), targets_BS, reduction="none")
        return losses_BS.mean(dim=1).double().cpu().numpy()

    return window_losses(losses, tokens, sequence_length, batch_size=batch_size)
