"""A model beside the one that it was trained from: what they answer, and how far apart they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

from ava_core.alignment.sampling import sample_answers
from ava_core.alignment.shards import ConversationShards
from ava_core.data.tokenizer import load_tokenizer
from ava_core.evaluation.diversity import repetition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Held-out prompts that both models answer.

    Attributes:
        prompts: token ids of each, up to where the answer begins.
        ends: tokens that end an answer.
        limit: new tokens, at most.
        tokenizer: folder of it.
        seed: of the samples, the same for both.
    """

    prompts: list[list[int]]
    ends: list[int]
    limit: int
    tokenizer: Path
    seed: int

    @classmethod
    def of(cls, asked: Sequence[tuple[np.ndarray, int]], shards: ConversationShards, seed: int) -> Self:
        """Of prompts, each with the token that ends its answer."""
        ends = sorted({end for _, end in asked})
        prompts = [prompt.tolist() for prompt, _ in asked]
        return cls(prompts, ends, shards.max_tokens, shards.folder / "tokenizer", seed)


def compare(start: Any, end: Any, asked: Asked) -> dict[str, float]:
    """Figures of both models' samples at temperature 1; those of the start have the prefix `start_`.

    `ended_answers`: share that ends by itself; `answer_tokens`: mean length; `repetition_4gram`: see
    `ava_core.evaluation.diversity.repetition`; `kl_to_start`: mean over the end's answers of the difference of their
    log-probabilities under both, in nats per answer: an unbiased estimate of the divergence of the end from the start.
    """
    if not asked.prompts:
        return dict.fromkeys(_names(), 0.0)
    found: dict[str, float] = {}
    answers: list[list[int]] = []
    for prefix, model in (("start_", start), ("", end)):
        answers = sample_answers(model, asked.prompts, asked.ends, asked.limit, asked.seed)
        found |= {f"{prefix}{name}": value for name, value in _figures(answers, asked).items()}
    differences = [
        _log_prob(end, prompt, answer) - _log_prob(start, prompt, answer)
        for prompt, answer in zip(asked.prompts, answers, strict=True)
    ]
    found["kl_to_start"] = float(np.mean(differences))
    log.info(
        "align: sampled answers have %.1f tokens, %.1f before; %.0f%% end by themselves, %.0f%% before; %.2f nats from"
        " the start",
        *(found["answer_tokens"], found["start_answer_tokens"]),
        *(100 * found["ended_answers"], 100 * found["start_ended_answers"], found["kl_to_start"]),
    )
    return found


def _names() -> list[str]:
    own = ["ended_answers", "answer_tokens", "repetition_4gram"]
    return [*own, *(f"start_{name}" for name in own), "kl_to_start"]


def _figures(answers: list[list[int]], asked: Asked) -> dict[str, float]:
    tokenizer: Any = load_tokenizer(asked.tokenizer)
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return {
        "ended_answers": float(np.mean([answer[-1] in asked.ends for answer in answers])),
        "answer_tokens": float(np.mean([len(answer) for answer in answers])),
        "repetition_4gram": repetition(texts),
    }


@torch.inference_mode()
def _log_prob(model: Any, prompt: list[int], answer: list[int]) -> float:
    tokens = torch.tensor([prompt + answer])
    logits = model(tokens[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    return -float(functional.cross_entropy(logits.float(), tokens[0, len(prompt) :], reduction="sum"))
