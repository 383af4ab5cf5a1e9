"""Whether an exported model gives the same logits with and without its cache, and in a padded batch as alone.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ava_core.config.context import DYNAMIC
from ava_core.data.shards import ShardedSplit
from ava_core.quantization.parity import MAX_LOGITS

ROWS = 4
"""Of different lengths and different text, so that a row that reads another's keys shows."""
CHUNK = 7
"""Tokens of a pass between the prompt and the single tokens."""
SINGLE_TOKENS = 8
"""Tokens at the end of a row that are given one by one, as in decoding."""


@torch.no_grad()
def cached_error(model: PreTrainedModel, split: ShardedSplit, length: int) -> float:
    """Mean absolute error of logits from prompts, chunks and single tokens with the cache, against each row alone in
    one pass without.

    The prompts are padded on the left, as `generate` does, and the single tokens ask for their own logits only, as it
    does: a decoder may have another code path for these.

    Args:
        model: with Transformers' `forward`.
        split: the text.
        length: tokens of the longest row, at most the model's context; with "dynamic" positions at most the original
            one, past which a cached key has the angles of its time (`ava_core.models.rope`).
    """
    rope = model.config.rope_parameters
    if rope["rope_type"] == DYNAMIC:
        length = min(length, rope["original_max_position_embeddings"])
    length = _fitting(model, split, length)
    prompt, single = max(1, length // 2), max(1, length // 2, length - SINGLE_TOKENS)
    # Each row has a part of its own in the prompt; all grow together from there on.
    lengths = [length - prompt + max(1, prompt * share // ROWS) for share in range(1, ROWS + 1)]
    batch = _Batch.of(_rows(split, lengths), "left")
    ends = sorted({0, prompt, *range(prompt + CHUNK, single, CHUNK), *range(single, length + 1)})
    past, parts = None, []
    for start, end in pairwise(ends):
        output = model(
            batch.tokens_BS[:, start:end],
            attention_mask=batch.mask_BS[:, :end],
            position_ids=batch.positions_BS[:, start:end],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1 if end - start == 1 else 0,
        )
        parts.append(output.logits.clone())
        past = output.past_key_values
    return _mean_error(model, batch, torch.cat(parts, dim=1))


@torch.no_grad()
def padded_error(model: PreTrainedModel, split: ShardedSplit, length: int) -> float:
    """Mean absolute error of logits of rows of different lengths in one batch, padded on the left or on the right,
    against each row alone; the larger of the two."""
    length = _fitting(model, split, length)
    rows = _rows(split, [max(1, length * share // ROWS) for share in range(1, ROWS + 1)])
    errors = []
    for side in ("left", "right"):
        batch = _Batch.of(rows, side)
        together = model(
            batch.tokens_BS, attention_mask=batch.mask_BS, position_ids=batch.positions_BS, use_cache=False
        ).logits
        errors.append(_mean_error(model, batch, together))
    return float(np.max(errors))


@dataclass(frozen=True)
class _Batch:
    """Rows of different lengths in one array, (B, S) each; mask_BS is 0 at padding."""

    rows: list[Tensor]
    tokens_BS: Tensor
    mask_BS: Tensor

    @classmethod
    def of(cls, rows: list[Tensor], side: Literal["left", "right"]) -> _Batch:
        longest = max(len(row) for row in rows)
        tokens_BS = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BS = torch.zeros_like(tokens_BS)
        for index, row in enumerate(rows):
            columns = slice(longest - len(row), None) if side == "left" else slice(len(row))
            tokens_BS[index, columns], mask_BS[index, columns] = row, 1
        return cls(rows, tokens_BS, mask_BS)

    @property
    def positions_BS(self) -> Tensor:
        """Position of each token in its row; 0 at padding on the left."""
        return (self.mask_BS.cumsum(-1) - 1).clamp_min(0)


def _mean_error(model: PreTrainedModel, batch: _Batch, together_BSV: Tensor) -> float:
    """Mean absolute error of the logits of a batch's tokens, against each row alone."""
    total, count = 0.0, 0
    for row, mask_S, found_SV in zip(batch.rows, batch.mask_BS, together_BSV, strict=True):
        alone_SV = model(row[None], use_cache=False).logits[0]
        error = (found_SV[mask_S != 0] - alone_SV).abs()
        total, count = total + error.double().sum().item(), count + error.numel()
    return total / count


def _fitting(model: PreTrainedModel, split: ShardedSplit, length: int) -> int:
    """As many tokens as the split holds, and as their logits take little memory."""
    return max(1, min(length, split.num_tokens, MAX_LOGITS // (ROWS * model.config.vocab_size)))


def _rows(split: ShardedSplit, lengths: list[int]) -> list[Tensor]:
    """Parts of the text of these lengths, evenly spaced."""
    starts = np.linspace(0, split.num_tokens - max(lengths), len(lengths)).astype(np.int64)
    return [
        torch.from_numpy(np.asarray(split.tokens[start : start + length], np.int64))
        for start, length in zip(starts, lengths, strict=True)
    ]
