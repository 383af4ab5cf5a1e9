"""Choosing the next token, by Transformers' own logits processors. Shapes: see `ava_core.models.shapes`."""

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
"""Where the strategy of that name is asked for without a value."""


def logits_processors(strategy: str, settings: GenerationConfig) -> LogitsProcessorList:
    """What happens to the logits before a token is chosen, in the order of Transformers' `generate`.

    Nucleus applies `top_k` and `min_p` as well where they are set; top-k and min-p apply themselves alone.
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
    """Draws each row's token with a generator of the row's own and leaves no other token possible.

    So a row's tokens depend on its own seed alone, whatever else is in the batch; `generate` then takes the maximum.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = [draw(row, generator) for row, generator in zip(scores, self.generators, strict=True)]
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, torch.tensor(chosen, device=scores.device)[:, None], 0.0)


def draw(logits_V: Tensor, generator: torch.Generator) -> int:
    """A token from the softmax of processed logits."""
    return int(torch.multinomial(logits_V.float().softmax(-1).cpu(), 1, generator=generator))


class Sampler:
    """Chooses the tokens of one sequence, for a loop that runs the model itself.

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
        """The next token is the maximum of the logits as they are."""
        return self.generator is None and not self.repeats

    def next(self, logits_V: Tensor) -> int:
        """Choose a token from the model's logits and remember it."""
        scores = logits_V[None]
        if self.processors:
            seen = torch.tensor([self.token_ids]) if self.repeats else torch.empty(1, 0, dtype=torch.long)
            scores = cast(Any, self.processors)(seen, scores.clone() if self.repeats else scores)
        token = int(scores.argmax()) if self.generator is None else draw(scores[0], self.generator)
        if self.repeats:
            self.token_ids.append(token)
        return token
