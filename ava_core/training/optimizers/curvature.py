"""Gradients on labels that the model draws itself, from which Sophia estimates the curvature.

Shapes: see `ava_core.models.shapes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ava_core.losses import IGNORE_INDEX, CrossEntropy, chunked_head_loss
from ava_core.losses.chunked import CHUNK_TOKENS
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.models.auxiliary import AuxiliaryGradient


def curvature_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Randomness of one estimate, a function of its arguments alone: there is no state to save."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@torch.no_grad()
def sample_labels(
    hidden_TD: Tensor, weight_VD: Tensor, generator: torch.Generator, chunk: int = CHUNK_TOKENS
) -> Tensor:
    """A label for each token, (T,), drawn from softmax(hidden @ weight.T); the logits exist in chunks only.

    Each token takes one number from `generator` (a CPU's), so the labels don't depend on `chunk`.
    """
    thresholds_T = torch.rand(len(hidden_TD), generator=generator, dtype=torch.float64).to(weight_VD.device)
    labels = []
    for hidden, threshold in zip(hidden_TD.split(chunk), thresholds_T.split(chunk), strict=True):
        # A sum over thousands of small probabilities, whose last entries float32 would lose.
        cumulated_TV = F.linear(hidden, weight_VD).float().softmax(dim=-1).double().cumsum(dim=-1)
        wanted_T1 = threshold[:, None] * cumulated_TV[:, -1:]
        labels.append(torch.searchsorted(cumulated_TV, wanted_T1, right=True).squeeze(1))
    return torch.cat(labels).clamp_(max=len(weight_VD) - 1)


def sampled_label_gradients(
    model: EnhancedMoEForCausalLM, passes: Iterable[Mapping[str, Any]], generator: torch.Generator
) -> tuple[dict[Tensor, Tensor], int]:
    """Gradients of the summed cross-entropy on labels drawn from the model (arXiv 2305.14342, algorithm 2).

    Nothing but the cross-entropy has a part in it: no router losses, no smoothing, no extra heads. `.grad` is left
    alone, and hooks on it (DeepSpeed's) don't run.

    Args:
        model: the model itself, not the engine around it; in training mode if dropout is to have a part.
        passes: what the model is called with for each micro-batch: `input_ids` (B, S) and, if there are, the
            `document_ids`, `attention_mask` and `shift_labels` (B, S), of which only the ignored positions matter.
        generator: see `curvature_generator`.

    Returns:
        The gradient of each trainable parameter that the predictions depend on, in float32 or wider, and the number of
        tokens: both are sums, so passes and ranks add up.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums: dict[Tensor, Tensor] = {}
    tokens = 0
    for inputs in passes:
        known = {name: value for name, value in inputs.items() if name != "shift_labels"}
        nothing = AuxiliaryGradient(added=False)
        output = model.model(**known, use_cache=False, auxiliary_gradient=nothing, return_dict=True)
        hidden_TD = output.last_hidden_state.flatten(0, 1)
        labels_T = sample_labels(hidden_TD.detach(), model.lm_head.weight.detach(), generator)
        if inputs.get("shift_labels") is not None:
            labels_T = labels_T.masked_fill(inputs["shift_labels"].reshape(-1) == IGNORE_INDEX, IGNORE_INDEX)
        total, _ = chunked_head_loss(hidden_TD, model.lm_head.weight, labels_T, [CrossEntropy()])
        for p, grad in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
            if grad is None:
                continue
            wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
            sums[p] = sums[p].add_(wide) if p in sums else wide
        tokens += int((labels_T != IGNORE_INDEX).sum())
    return sums, tokens
