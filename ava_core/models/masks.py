"""Which positions a query may attend to. Shapes: see `shapes`.

A mask is one of three:
    None: a query may look at itself and at all positions before it.
    (B or 1, S), int64, `first_BS`: not before that position; S lets it look at nothing. Documents, padding on the left
        and sliding windows take no more, so that masks don't grow with the square of the sequence's length.
    (B or 1, 1, S, S_kv), boolean: True where it may look. For what has gaps, and for positions in a cache.

A query that may look at nothing, as padding on the left, gets zeros from attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
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
    """For each layer its mask. Layers of one kind share one.

    A layer with a sliding window sees the last `config.sliding_window` positions, its own among them.

    `attention_mask` is 2-D over keys (0 marks padding), a finished 4-D mask for all layers, or one for each kind of
    layer, as `generate` makes them for a cache of fixed size. `document_ids_BS` further limits attention to positions
    of the same document; those of one document are neighbours.

    Raises:
        ValueError: document ids together with a cache that already holds positions, or with a 4-D mask.
    """
    types = getattr(config, "layer_types", None) or [FULL] * config.num_layers
    if isinstance(attention_mask, dict):
        return [attention_mask[kind] for kind in types]
    if document_ids_BS is not None:
        _require_whole_sequences(attention_mask, past_key_values)
    elif attention_mask is None and past_key_values is None:
        document_ids_BS = documents_of(position_ids)
    made: dict[str, Tensor | None] = {}
    for kind in dict.fromkeys(types):
        window = config.sliding_window if kind == SLIDING else None
        if document_ids_BS is not None or _is_whole(inputs_embeds, attention_mask, past_key_values):
            made[kind] = _whole_mask(inputs_embeds, attention_mask, document_ids_BS, window)
        else:
            made[kind] = _MAKERS[kind](
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
    return [made[kind] for kind in types]


def documents_of(position_ids: Tensor) -> Tensor:
    """Documents of packed sequences by their positions (B or 1, S): one that doesn't follow the one before it begins a
    document, as Transformers' own models have it.
    """
    return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)


def dense_mask(first_BS: Tensor, start: int, low: int, high: int) -> Tensor:
    """(B or 1, 1, queries, keys) of the queries from `start` on that `first_BS` is of, and of keys `low` to `high`."""
    queries = torch.arange(start, start + first_BS.shape[-1], device=first_BS.device)
    keys = torch.arange(low, high, device=first_BS.device)
    return ((keys >= first_BS[..., None]) & (keys <= queries[:, None]))[:, None]


def _require_whole_sequences(attention_mask: Tensor | None, past_key_values: Cache | None) -> None:
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError("document_ids: must be None when past_key_values holds positions")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"attention_mask = {attention_mask.dim()} dimensions: must be 2 together with document_ids")


def _is_whole(inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None) -> bool:
    """Whether the keys are those of the queries' own positions: there is no cache, or an empty one that grows."""
    empty = past_key_values is None or (type(past_key_values) is DynamicCache and not past_key_values.get_seq_length())
    return empty and (attention_mask is None or attention_mask.shape == inputs_embeds.shape[:2])


def _whole_mask(
    inputs_embeds: Tensor, attention_mask: Tensor | None, document_ids_BS: Tensor | None, window: int | None
) -> Tensor | None:
    """The mask of whole sequences, by documents, padding and window."""
    S = inputs_embeds.shape[1]
    positions = torch.arange(S, device=inputs_embeds.device)[None]
    first = torch.zeros_like(positions)
    if document_ids_BS is not None:
        begins = document_ids_BS.diff(dim=-1, prepend=document_ids_BS[:, :1]) != 0
        first = _latest(begins, positions)
    if window is not None:
        first = torch.maximum(first, positions - (window - 1))
    real = None if attention_mask is None else attention_mask.to(positions.device).bool()
    if real is not None:
        if _has_gaps(real):
            return dense_mask(first, 0, 0, S) & real[:, None, None]
        # Padding on the right is behind all tokens.
        begins = real.int().argmax(dim=-1, keepdim=True)
        first = torch.where(positions < begins, S, torch.maximum(first, begins))
    return first if torch.compiler.is_compiling() or first.any() else None


def _latest(begins_BS: Tensor, positions_1S: Tensor) -> Tensor:
    """(B, S), int64: of each position the last one up to it where something begins, or the first of all."""
    if not torch.compiler.is_exporting():
        return torch.where(begins_BS, positions_1S, 0).cummax(dim=-1).values
    part_BS = begins_BS.cumsum(dim=-1)  # ONNX has no running maximum
    return (part_BS[:, :, None] == part_BS[:, None]).int().argmax(dim=-1)


def _has_gaps(real_BS: Tensor) -> bool:
    """Whether padding stands between tokens of some sequence."""
    runs_B = real_BS[:, 0].int() + (real_BS[:, 1:] & ~real_BS[:, :-1]).sum(dim=-1)
    return bool((runs_B > 1).any())
