"""Which positions a query may attend to. Shapes: see `shapes`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask


def attention_mask_for(
    config: PreTrainedConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    position_ids: Tensor,
    document_ids_BS: Tensor | None,
) -> Tensor | None:
    """Boolean mask (B or 1, 1, S, S_kv), True where a query may look; None means plainly causal.

    `attention_mask` is 2-D over keys (0 marks padding), or a finished 4-D mask. `document_ids_BS` further
    limits attention to positions of the same document.

    Raises:
        ValueError: document ids together with a cache that already holds positions, or with a 4-D mask.
    """
    if document_ids_BS is None:
        return create_causal_mask(  # type: ignore[return-value]  # a tensor or None with SDPA
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError("document_ids: must be None when past_key_values holds positions")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"attention_mask = {attention_mask.dim()} dimensions: must be 2 together with document_ids")
    S = inputs_embeds.shape[1]
    mask = torch.ones(S, S, dtype=torch.bool, device=inputs_embeds.device).tril()[None, None]
    mask = mask & (document_ids_BS[:, None, :, None] == document_ids_BS[:, None, None, :])
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, :].bool()
        # A padding query would look at nothing and come out as NaN: let it see itself.
        mask = mask | torch.eye(S, dtype=torch.bool, device=mask.device)
    return mask
