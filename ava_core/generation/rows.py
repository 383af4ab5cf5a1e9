"""Rows of tokens that a model reads with a KV cache, for decoding that Transformers' `generate` doesn't have.

Shapes: see `ava_core.models.shapes`; here S counts the tokens of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reading:
    """What a pass gave.

    Attributes:
        logits_BV: float32, of each row's last token.
        hidden_BSD: the last layer's hidden states, after its norm; None unless asked for.
    """

    logits_BV: Tensor
    hidden_BSD: Tensor | None


class Rows:
    """A batch of sequences.

    Args:
        model: causal, of PyTorch or ONNX Runtime.
        hidden: give hidden states with the logits.
    """

    def __init__(self, model: PreTrainedModel, *, hidden: bool = False) -> None:
        self.model, self.hidden = model, hidden
        self._cache: Any = None
        self._mask_BS: Tensor | None = None

    def read(self, input_ids_BS: Tensor, attention_mask_BS: Tensor) -> Reading:
        """Begin with prompts, padded on the left."""
        self._mask_BS = attention_mask_BS
        positions_BS = (attention_mask_BS.cumsum(-1) - 1).clamp(min=0)
        return self._run(input_ids_BS, positions_BS)

    def go_on(self, tokens_B: Tensor) -> Reading:
        """Append a token to each row."""
        assert self._mask_BS is not None
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(tokens_B), 1)], dim=1)
        return self._run(tokens_B[:, None], self._mask_BS.sum(-1, keepdim=True) - 1)

    def select(self, rows: Tensor) -> None:
        """Row i becomes what rows[i] was; rows may come several times or not at all."""
        assert self._mask_BS is not None
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)

    def _run(self, input_ids_BS: Tensor, positions_BS: Tensor) -> Reading:
        output: Any = self.model(
            input_ids=input_ids_BS,
            attention_mask=self._mask_BS,
            position_ids=positions_BS,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=self.hidden,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        hidden_BSD = output.hidden_states[-1] if self.hidden else None
        return Reading(output.logits[:, -1].float(), hidden_BSD)
