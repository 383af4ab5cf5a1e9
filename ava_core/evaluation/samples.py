"""Samples: a model's continuations of the prompts, by each decoding strategy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.evaluate import EvaluateConfig
from ava_core.evaluation.diversity import distinct, repetition
from ava_core.files import write_whole
from ava_core.generation.decoding import generate

STRATEGIES = ("greedy", "beam", "nucleus")
"""What the report shows side by side: greedy decoding, beam search, and nucleus (top-p) sampling, arXiv 1904.09751."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One text.

    Attributes:
        model: "float", or the scheme of a quantised model.
        strategy: one of `STRATEGIES`.
        prompt: what was given.
        text: the prompt and its continuation.
    """

    model: str
    strategy: str
    prompt: str
    text: str

    @property
    def continuation(self) -> str:
        """The text without its prompt."""
        return self.text[len(self.prompt) :]

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)


def draw_samples(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: EvaluateConfig,
    seed: int,
    kept: Path,
) -> list[Sample]:
    """All prompts by all strategies, in this order; taken from `kept` if an earlier, killed run left them there."""
    if kept.is_file():
        return [Sample(**fields) for fields in json.loads(kept.read_text())]
    samples = [
        Sample(model=name, strategy=strategy, prompt=prompt, text=text)
        for strategy in STRATEGIES
        for prompt, text in zip(
            config.prompts,
            generate(model, tokenizer, config.prompts, strategy=strategy, settings=config.generation, seed=seed),
            strict=True,
        )
    ]
    write_whole(kept, json.dumps([sample.to_json() for sample in samples], ensure_ascii=False), durable=True)
    return samples


def describe_samples(samples: list[Sample]) -> dict[str, float]:
    """`distinct_2` and `repetition_4gram` of the continuations: each strategy's figure, then their mean.

    The strategies aren't pooled, because greedy decoding and beam search often give nearly the same text.
    """
    figures: dict[str, float] = {}
    for name, measure in (("distinct_2", distinct), ("repetition_4gram", repetition)):
        values = [
            measure([sample.continuation for sample in samples if sample.strategy == strategy])
            for strategy in STRATEGIES
        ]
        figures[name] = sum(values) / len(values)
        figures.update({f"{name}_{strategy}": value for strategy, value in zip(STRATEGIES, values, strict=True)})
    return figures
