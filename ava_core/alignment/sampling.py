"""A model's own answers to many prompts, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

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
    padding = model.config.pad_token_id or 0
    stops = sorted({*ends, int(model.config.eos_token_id)})
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(prompts[number]) for number in chosen)
        missing = [width - len(prompts[number]) for number in chosen]
        rows = [[padding] * gap + list(prompts[number]) for gap, number in zip(missing, chosen, strict=True)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + start)
            generated = model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor([[0] * gap + [1] * (width - gap) for gap in missing]),
                do_sample=True,
                top_k=0,
                temperature=temperature,
                max_new_tokens=max(1, min(max_new_tokens, model.config.max_position_embeddings - width)),
                eos_token_id=stops,
                pad_token_id=padding,
            )
        for number, row in zip(chosen, generated[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
            answers[number] = row[: end + 1]
        advance(min(start + BATCH, len(order)))
    return answers


def ended_share(model: Any, prompts: list[list[int]], ends: list[int], max_new_tokens: int, seed: int) -> float:
    """Share of sampled answers (temperature 1) in which the token that ends an answer comes within the limit.

    Args:
        model: of ours, which answers.
        prompts: token ids of each, up to where the answer begins.
        ends: the token that ends each one's answer.
        max_new_tokens: the limit; less where the model's positions end before.
        seed: of the samples.
    """
    if not prompts:
        return 1.0
    answers = sample_answers(model, prompts, ends, max_new_tokens, seed)
    return sum(end in answer for end, answer in zip(ends, answers, strict=True)) / len(prompts)
