"""A model's own answers to many prompts, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BATCH = 64
"""Prompts that are answered at once."""


@torch.inference_mode()
def sample_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    seed: int,
    *,
    temperature: float = 1.0,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """An answer to each prompt, up to where it ends by itself, that token included, or to the limit.

    Prompts of about the same length are answered together; the samples depend on all prompts and on the seed.

    Args:
        model: of ours, in evaluation mode.
        prompts: token ids of each, up to where the answer begins.
        ends: tokens at which an answer ends, beside the end of a document.
        max_new_tokens: the limit; less where the model's positions end before.
        seed: of the samples.
        temperature: of the samples; nothing is cut off.
        advance: told how many prompts have been answered.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: list[list[int]] = [[]] * len(prompts)
    stops = stops_of(model, ends)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(prompts[number]) for number in chosen)
        asked = left_padded(model, [prompts[number] for number in chosen], width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + start)
            generated = model.generate(
                **asked,
                do_sample=True,
                top_k=0,
                temperature=temperature,
                max_new_tokens=max(1, min(max_new_tokens, model.config.max_position_embeddings - width)),
                eos_token_id=stops,
                pad_token_id=padding_of(model),
            )
        for number, row in zip(chosen, generated[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
            answers[number] = row[: end + 1]
        advance(min(start + BATCH, len(order)))
    return answers


def stops_of(model: Any, ends: Sequence[int]) -> list[int]:
    """What ends the model's answers: these tokens, and the end of a document."""
    return sorted({*ends, int(model.config.eos_token_id)})


def padding_of(model: Any) -> int:
    """The token that fills up prompts, and answers that have ended."""
    return model.config.pad_token_id or 0


def left_padded(model: Any, prompts: Sequence[Sequence[int]], width: int) -> dict[str, Tensor]:
    """Prompts as `generate` takes them: `input_ids` and `attention_mask`, (B, width) each, on the model's device."""
    gaps = [width - len(prompt) for prompt in prompts]
    rows = [[padding_of(model)] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return {
        "input_ids": torch.tensor(rows, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }
