"""Choosing the next token, with Transformers' logits processors. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ava_core.config.generation import GenerationConfig
from ava_core.generation.strategies import SAMPLED

TOP_K, MIN_P = 50, 0.05
"""Defaults of the strategies of these names."""


def logits_processors(strategy: str, settings: GenerationConfig) -> LogitsProcessorList:
    """The processors of a strategy, in the order of Transformers' `generate`.

    Nucleus sampling also applies `top_k` and `min_p` where they are set; top-k and min-p sampling apply only their own.
    """
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if strategy not in SAMPLED:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    top_k = settings.top_k or (TOP_K if strategy == "top-k" else 0)
    min_p = settings.min_p or (MIN_P if strategy == "min-p" else 0.0)
    if top_k and strategy != "min-p":
        processors.append(TopKLogitsWarper(top_k))
    if settings.top_p < 1 and strategy == "nucleus":
        processors.append(TopPLogitsWarper(settings.top_p))
    if min_p and strategy != "top-k":
        processors.append(MinPLogitsWarper(min_p))
    return processors


class SeededDraw(LogitsProcessor):
    """Samples each row's token with the row's own generator, and sets all other logits to -inf.

    So a row's tokens depend on its seed alone, whatever else is in the batch; `generate` then takes the maximum.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = [draw(row, generator) for row, generator in zip(scores, self.generators, strict=True)]
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, torch.tensor(chosen, device=scores.device)[:, None], 0.0)


def draw(logits_V: Tensor, generator: torch.Generator) -> int:
    """A token sampled from the softmax of processed logits."""
    return int(torch.multinomial(logits_V.float().softmax(-1).cpu(), 1, generator=generator))


class Sampler:
    """Chooses the tokens of one sequence, for a decoding loop outside of Transformers.

    Args:
        strategy: any but beam.
        settings: as `generate` takes them.
        seed: of this sequence's own generator.
        prompt_ids: its tokens so far; a repetition penalty looks at them.
    """

    def __init__(self, strategy: str, settings: GenerationConfig, seed: int, prompt_ids: Sequence[int]) -> None:
        self.processors = logits_processors(strategy, settings)
        self.generator = torch.Generator().manual_seed(seed) if strategy in SAMPLED else None
        self.repeats = settings.repetition_penalty != 1
        self.token_ids = list(prompt_ids)

    @property
    def greedy(self) -> bool:
        """Whether the next token is the maximum of the unprocessed logits."""
        return self.generator is None and not self.repeats

    def next(self, logits_V: Tensor) -> int:
        """Choose a token from the model's logits and append it to the sequence."""
        scores = logits_V[None]
        if self.processors:
            seen = torch.tensor([self.token_ids]) if self.repeats else torch.empty(1, 0, dtype=torch.long)
            scores = cast(Any, self.processors)(seen, scores.clone() if self.repeats else scores)
        token = int(scores.argmax()) if self.generator is None else draw(scores[0], self.generator)
        if self.repeats:
            self.token_ids.append(token)
        return token
