"""How far an exported model is from its PyTorch original, teacher-forced on the same text.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ava_core.data.batches import scoring_windows
from ava_core.data.shards import ShardedSplit

MAX_LOGITS = 2**24
"""Logits held at once; bounds the batch."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Figures over all scored tokens.

    Attributes:
        max_abs_error, mean_abs_error: of the logits, absolute.
        top1_agreement: share of tokens with the same most likely next token.
        expert_agreement: share of (token, layer) pairs with the same set of chosen experts.
        expert_slot_agreement: twice the shared choices over the choices of both; with a fixed number of experts per
            token, the share of equal slots.
        bits_per_byte_increase: cross-entropy of the candidate less the original's, in bits per byte of the text; the
            bytes are taken from the split's mean bytes per token.
        increase_percent: the same in percent of the original's cross-entropy.
        tokens: number of tokens compared.
    """

    max_abs_error: float
    mean_abs_error: float
    top1_agreement: float
    expert_agreement: float
    expert_slot_agreement: float
    bits_per_byte_increase: float
    increase_percent: float
    tokens: int


@torch.no_grad()
def measure_parity(
    reference: PreTrainedModel,
    candidate: PreTrainedModel,
    split: ShardedSplit,
    *,
    sequence_length: int,
    sequences: int,
    advance: Callable[[float], None] = lambda done: None,
) -> Parity:
    """Compare two models on windows of a split, evenly spaced, with the training context.

    Args:
        reference, candidate: return `logits`, and `router_choices` with output_router_logits; in evaluation mode.
        split: the text.
        sequence_length: tokens per window.
        sequences: windows, at most.
        advance: called with the number of windows done.
    """
    batch_size = max(1, MAX_LOGITS // (sequence_length * split.vocab_size))
    windows = scoring_windows(
        split.tokens, sequence_length, split.boundary_token_id, batch_size=min(batch_size, sequences), limit=sequences
    )
    totals, done = _Totals(), 0
    for window in windows:
        inputs, targets = torch.from_numpy(window.inputs), torch.from_numpy(window.targets)
        expected = reference(inputs, output_router_logits=True, use_cache=False)
        found = candidate(inputs, output_router_logits=True, use_cache=False)
        totals.add(expected, found, targets, torch.from_numpy(window.mask))
        done += len(inputs)
        advance(done)
    return totals.result(bytes_per_token=split.num_bytes / split.num_tokens)


class _Totals:
    """Sums over windows, in double precision."""

    def __init__(self) -> None:
        self.max_error = self.error = self.nats = self.expected_nats = 0.0
        self.tokens = self.logits = self.same_top = self.pairs = self.same_sets = self.choices = self.shared = 0

    def add(self, reference, candidate, targets_BS: Tensor, mask_BS: Tensor) -> None:
        """Add one batch; positions where the mask is False don't count."""
        expected, found = reference.logits[mask_BS].float(), candidate.logits[mask_BS].float()
        error = (expected - found).abs()
        self.max_error = float(np.maximum(self.max_error, error.max().item()))  # keeps a NaN, as max() doesn't
        self.error += error.double().sum().item()
        self.logits += error.numel()
        self.tokens += len(expected)
        self.same_top += int((expected.argmax(-1) == found.argmax(-1)).sum())
        targets = targets_BS[mask_BS]
        losses = [F.cross_entropy(logits, targets, reduction="none").double().sum() for logits in (expected, found)]
        self.nats += (losses[1] - losses[0]).item()
        self.expected_nats += losses[0].item()
        mask_T = mask_BS.reshape(-1)
        for left, right in zip(reference.router_choices, candidate.router_choices, strict=True):
            left_TE, right_TE = left[mask_T], right[mask_T]
            self.pairs += len(left_TE)
            self.same_sets += int((left_TE == right_TE).all(dim=-1).sum())
            self.shared += int((left_TE & right_TE).sum())
            self.choices += int(left_TE.sum() + right_TE.sum())

    def result(self, bytes_per_token: float) -> Parity:
        return Parity(
            max_abs_error=self.max_error,
            mean_abs_error=self.error / self.logits,
            top1_agreement=self.same_top / self.tokens,
            expert_agreement=self.same_sets / self.pairs,
            expert_slot_agreement=2 * self.shared / self.choices,
            bits_per_byte_increase=self.nats / math.log(2) / (self.tokens * bytes_per_token),
            increase_percent=100 * self.nats / self.expected_nats,
            tokens=self.tokens,
        )
