"""What calibration text tells of a model's experts: how many tokens choose each, and what is lost without it. Shapes:
see `ava_core.models.shapes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ava_core.data.batches import bits_per_byte, scoring_windows
from ava_core.data.shards import ShardedSplit
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.routing.expert_bias import ExpertBiasRouter
from ava_core.training.pretraining import packed_document_ids
from ava_core.training.validation import mean_loss

BATCH_TOKENS = 4096
"""Inputs read at once."""
CLOSED = -1e9
"""A logit whose probability is 0 in float32, and finite, so that no entropy is nan."""


@dataclass(frozen=True)
class CalibrationText:
    """Windows of a split, evenly spaced over it.

    Attributes:
        split: in the model's tokens.
        sequence_length: S, tokens of a window.
        sequences: how many.
    """

    split: ShardedSplit
    sequence_length: int
    sequences: int

    @property
    def batch_size(self) -> int:
        """Windows read at once."""
        return max(1, BATCH_TOKENS // self.sequence_length)

    def batches(self) -> Iterator[dict[str, Tensor | None]]:
        """What the decoder is called with for each batch of windows."""
        boundary = self.split.boundary_token_id
        windows = scoring_windows(
            self.split.tokens, self.sequence_length, boundary, batch_size=self.batch_size, limit=self.sequences
        )
        for batch in windows:
            inputs = batch.inputs[batch.mask.all(axis=1)]  # the last window of a split may be a part of one
            if len(inputs):
                yield {"input_ids": torch.from_numpy(inputs), "document_ids": packed_document_ids(inputs, boundary)}

    def loss(self, model: EnhancedMoEForCausalLM) -> float:
        """Nats per token."""
        return self._measured(model)[0]

    def bits_per_byte(self, model: EnhancedMoEForCausalLM) -> float:
        """The same in bits per byte of the text; of a part of the split, the bytes are in proportion to its tokens."""
        loss, count = self._measured(model)
        return bits_per_byte(loss * count, self.split.num_bytes * count / len(self.split.tokens))

    def _measured(self, model: EnhancedMoEForCausalLM) -> tuple[float, int]:
        return mean_loss(model, self.split, self.sequence_length, batch_size=self.batch_size, limit=self.sequences)


@torch.no_grad()
def loads(model: EnhancedMoEForCausalLM, text: CalibrationText) -> Tensor:
    """Share of the tokens that chose each FFN expert of each layer, (layers, N)."""
    total, tokens = torch.zeros(model.config.num_layers, model.config.num_ffn_experts, dtype=torch.float64), 0
    for inputs in text.batches():
        count = inputs["input_ids"].numel()  # type: ignore[union-attr]
        layers = model.model(**inputs, use_cache=False).router_statistics
        total += count * torch.stack([layer.load_E[: total.shape[1]] for layer in layers]).double()
        tokens += count
    return total / tokens


def effects(model: EnhancedMoEForCausalLM, text: CalibrationText, advance: Callable[[int], None]) -> Tensor:
    """How much the loss grows, nats per token, when one FFN expert is left out, for each of each layer: (layers, N).

    A pass over the text for each of them. `advance` is told how many are done.
    """
    whole = text.loss(model)
    found = torch.zeros(model.config.num_layers, model.config.num_ffn_experts, dtype=torch.float64)
    for layer in range(found.shape[0]):
        for expert in range(found.shape[1]):
            with left_out(model, layer, [expert]):
                found[layer, expert] = text.loss(model) - whole
            advance(layer * found.shape[1] + expert + 1)
    return found


@contextmanager
def left_out(model: EnhancedMoEForCausalLM, layer: int, experts: list[int]) -> Iterator[None]:
    """No token of a layer chooses these experts; what the next layer's gate gets of this one's stays."""
    router = model.model.layers[layer].moe.router
    columns = [model.config.num_logits - model.config.num_experts + expert for expert in experts]

    def close(_router: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits = arguments[0].clone()
        logits[:, columns] = CLOSED
        return (logits, *arguments[1:])

    bias = router.expert_bias.clone() if isinstance(router, ExpertBiasRouter) else None
    handle = router.register_forward_pre_hook(close)
    try:
        if bias is not None:
            router.expert_bias[experts] = CLOSED
        yield
    finally:
        handle.remove()
        if bias is not None:
            router.expert_bias.copy_(bias)
