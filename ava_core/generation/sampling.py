"""Choosing the next token, with Transformers' logits processors. Shapes: see `ava_core.models.shapes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ava_core.config.generation import GenerationConfig
from ava_core.generation.strategies import SAMPLED

TOP_K, MIN_P, TYPICAL_P = 50, 0.05, 0.95
"""Defaults of the strategies of these names."""


class Allowed(Protocol):
    """Which tokens may come next; `constraints.Guide`."""

    @property
    def allowed_V(self) -> Any:
        """Bool, an array of NumPy's."""

    @property
    def complete(self) -> bool:
        """Nothing can follow."""

    def accept(self, token: int) -> None:
        """Go on with a token."""


def reads_history(settings: GenerationConfig) -> bool:
    """Whether `history_processors` look at the tokens so far."""
    return settings.repetition_penalty != 1 or settings.no_repeat_ngram_size > 0 or settings.min_new_tokens > 0


def history_processors(
    settings: GenerationConfig, prompt_length: int, ends: Sequence[int], padding: int | None = None
) -> LogitsProcessorList:
    """The processors of every strategy, which depend on the tokens so far; in the order of Transformers' `generate`.

    Args:
        settings: as `generate` takes them.
        prompt_length: tokens before the first new one, padding included.
        ends: tokens that end a text.
        padding: the token that prompts are padded with on the left.
    """
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(_RepetitionPenalty(settings.repetition_penalty, padding))
    if settings.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.min_new_tokens and ends:
        processors.append(MinNewTokensLengthLogitsProcessor(prompt_length, settings.min_new_tokens, list(ends)))
    return processors


def sampling_filters(strategy: str, settings: GenerationConfig) -> LogitsProcessorList:
    """The filters of a strategy that samples, in the order of Transformers' `generate`; none for the others.

    Nucleus sampling applies all that are set; the others only their own.
    """
    processors = LogitsProcessorList()
    if strategy not in SAMPLED:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    nucleus = strategy == "nucleus"
    top_k = settings.top_k or (TOP_K if strategy == "top-k" else 0)
    min_p = settings.min_p or (MIN_P if strategy == "min-p" else 0.0)
    typical_p = TYPICAL_P if strategy == "typical" and settings.typical_p == 1 else settings.typical_p
    if top_k and (nucleus or strategy == "top-k"):
        processors.append(TopKLogitsWarper(top_k))
    if settings.top_p < 1 and nucleus:
        processors.append(TopPLogitsWarper(settings.top_p))
    if min_p and (nucleus or strategy == "min-p"):
        processors.append(MinPLogitsWarper(min_p))
    if typical_p < 1 and (nucleus or strategy == "typical"):
        processors.append(TypicalLogitsWarper(typical_p))
    if settings.epsilon_cutoff and nucleus:
        processors.append(EpsilonLogitsWarper(settings.epsilon_cutoff))
    if settings.eta_cutoff and nucleus:
        processors.append(EtaLogitsWarper(settings.eta_cutoff))
    return processors


class _RepetitionPenalty(RepetitionPenaltyLogitsProcessor):
    """Transformers', but the padding of a batch isn't a token that occurred."""

    def __init__(self, penalty: float, padding: int | None) -> None:
        super().__init__(penalty)
        self.padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.padding is not None:
            input_ids = torch.where(input_ids == self.padding, input_ids[:, -1:], input_ids)
        return super().__call__(input_ids, scores)


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
        strategy: any but beam and contrastive.
        settings: as `generate` takes them.
        seed: of this sequence's own generator.
        prompt_ids: its tokens so far, which repetitions are looked for in.
        ends: tokens that end it.
        guide: says which tokens may come next.
    """

    def __init__(
        self,
        strategy: str,
        settings: GenerationConfig,
        seed: int,
        prompt_ids: Sequence[int],
        *,
        ends: Sequence[int] = (),
        guide: Allowed | None = None,
    ) -> None:
        self.history = history_processors(settings, len(prompt_ids), ends)
        self.filters = sampling_filters(strategy, settings)
        self.generator = torch.Generator().manual_seed(seed) if strategy in SAMPLED else None
        self.guide = guide
        self.token_ids = list(prompt_ids)

    @property
    def greedy(self) -> bool:
        """Whether the next token is the maximum of the unprocessed logits."""
        return self.generator is None and not self.history and self.guide is None

    @property
    def complete(self) -> bool:
        """Whether the guide lets nothing follow."""
        return self.guide is not None and self.guide.complete

    def next(self, logits_V: Tensor) -> int:
        """Choose a token from the model's logits and append it to the sequence."""
        scores = logits_V[None]
        if self.history:
            scores = cast(Any, self.history)(torch.tensor([self.token_ids]), scores.clone())
        if self.guide is not None:
            scores = scores.masked_fill(~torch.from_numpy(self.guide.allowed_V), float("-inf"))
        if self.filters:
            scores = cast(Any, self.filters)(torch.empty(1, 0, dtype=torch.long), scores)
        token = int(scores.argmax()) if self.generator is None else draw(scores[0], self.generator)
        if self.history:
            self.token_ids.append(token)
        if self.guide is not None:
            self.guide.accept(token)
        return token
