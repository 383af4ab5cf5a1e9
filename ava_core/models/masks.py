"""Which positions a query may attend to. Shapes: see `shapes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from ava_core.config.context import FULL, SLIDING
from ava_core.models.configuration import EnhancedMoEConfig

_MAKERS: dict[str, Callable[..., Any]] = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}


def layer_masks(
    config: EnhancedMoEConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | dict[str, Tensor] | None,
    past_key_values: Cache | None,
    position_ids: Tensor,
    document_ids_BS: Tensor | None,
) -> Sequence[Tensor | None]:
    """For each layer a boolean mask (B or 1, 1, S, S_kv), True where a query may look; None means plainly causal.

    A layer with a sliding window sees the last `config.sliding_window` positions, its own among them. Layers of one
    kind share one mask.

    `attention_mask` is 2-D over keys (0 marks padding), a finished 4-D mask for all layers, or one for each kind of
    layer, as `generate` makes them for a cache of fixed size. `document_ids_BS` further limits attention to positions
    of the same document.

    Raises:
        ValueError: document ids together with a cache that already holds positions, or with a 4-D mask.
    """
    types = getattr(config, "layer_types", None) or [FULL] * config.num_layers
    if isinstance(attention_mask, dict):
        return [attention_mask[kind] for kind in types]
    made: dict[str, Tensor | None] = {}
    for kind in dict.fromkeys(types):
        if document_ids_BS is None:
            made[kind] = _MAKERS[kind](
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        else:
            window = config.sliding_window if kind == SLIDING else None
            made[kind] = _document_mask(inputs_embeds, attention_mask, past_key_values, document_ids_BS, window)
    return [made[kind] for kind in types]


def _document_mask(
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    document_ids_BS: Tensor,
    window: int | None,
) -> Tensor:
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError("document_ids: must be None when past_key_values holds positions")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"attention_mask = {attention_mask.dim()} dimensions: must be 2 together with document_ids")
    S = inputs_embeds.shape[1]
    mask = torch.ones(S, S, dtype=torch.bool, device=inputs_embeds.device).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    mask = mask[None, None] & (document_ids_BS[:, None, :, None] == document_ids_BS[:, None, None, :])
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, :].bool()
        # A padding query would look at nothing and come out as NaN: let it see itself.
        mask = mask | torch.eye(S, dtype=torch.bool, device=mask.device)
    return mask
