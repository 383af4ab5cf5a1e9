"""Contrastive search (Su et al., arXiv 2202.06417): probable tokens that don't repeat what the model has in mind.

Of the k most probable tokens v, the one with the greatest (1 - alpha) p(v) - alpha max_j cos(h(v), h(j)) is taken,
where h(v) is the last hidden state after v and j runs over the tokens before it (equation 5). Each token takes one pass
over k rows, and its logits serve the next one.

Transformers keeps its implementation in a repository whose code would have to be run; this one is Ava's own.
Shapes: see `ava_core.models.shapes`; K = candidates, T = tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from ava_core.generation.rows import Rows

TOP_K = 4
"""Candidates where `top_k` isn't set; the paper's choices are 3 to 10."""


def contrastive_search(
    model: PreTrainedModel,
    batch: Any,
    *,
    processors: Any,
    criteria: Any,
    max_new_tokens: int,
    penalty_alpha: float,
    top_k: int,
    ends: Sequence[int],
    padding: int,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Continue prompts.

    Args:
        model: causal, of PyTorch or ONNX Runtime.
        batch: `input_ids` and `attention_mask`, (B, S), padded on the left.
        processors: of the logits, as Transformers calls them.
        criteria: as Transformers calls them; a row ends at one of `ends`, too.
        max_new_tokens: most tokens to add.
        penalty_alpha: weight of the similarity; 0 is greedy decoding.
        top_k: number of candidates.
        ends: tokens that end a row.
        padding: what follows it.
        streamer: told the prompt and each token of the only row.

    Returns:
        int64 (B, S + new tokens).
    """
    sequences_BT, mask_BT = batch["input_ids"], batch["attention_mask"].bool()
    B = len(sequences_BT)
    end_tokens = torch.tensor(ends, device=sequences_BT.device)
    rows = Rows(model, hidden=True)
    reading = rows.read(sequences_BT, batch["attention_mask"])
    logits_BV, context_BTD = reading.logits_BV, normalize(_hidden(reading), dim=-1)
    K = min(top_k, logits_BV.shape[-1])
    rows.select(torch.arange(B, device=sequences_BT.device).repeat_interleave(K))
    ended_B = torch.zeros(B, dtype=torch.bool, device=sequences_BT.device)
    if streamer is not None:
        streamer.put(sequences_BT.cpu())
    for _ in range(max_new_tokens):
        probability_BV = processors(sequences_BT, logits_BV.clone()).softmax(-1)
        probability_BK, candidates_BK = probability_BV.topk(K)
        reading = rows.go_on(candidates_BK.flatten())
        hidden_BKD = normalize(_hidden(reading), dim=-1).reshape(B, K, -1)
        similarity_BKT = (hidden_BKD @ context_BTD.mT).masked_fill(~mask_BT[:, None], -1.0)
        scores_BK = (1 - penalty_alpha) * probability_BK - penalty_alpha * similarity_BKT.amax(-1)
        chosen_B = scores_BK.masked_fill(probability_BK == 0, float("-inf")).argmax(-1)

        every_B = torch.arange(B, device=chosen_B.device)
        tokens_B = candidates_BK[every_B, chosen_B].masked_fill(ended_B, padding)
        logits_BV = reading.logits_BV.reshape(B, K, -1)[every_B, chosen_B]
        context_BTD = torch.cat([context_BTD, hidden_BKD[every_B, chosen_B][:, None]], dim=1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(B, 1)], dim=1)
        sequences_BT = torch.cat([sequences_BT, tokens_B[:, None]], dim=1)
        if streamer is not None:
            streamer.put(tokens_B.cpu())
        ended_B = ended_B | torch.isin(tokens_B, end_tokens) | criteria(sequences_BT, None)
        if bool(ended_B.all()):
            break
        rows.select((every_B * K + chosen_B).repeat_interleave(K))
    if streamer is not None:
        streamer.end()
    return sequences_BT


def _hidden(reading: Any) -> Tensor:
    return reading.hidden_BSD.float()
