"""The section `preferences`: what `ava preprocess --for preference` makes shards of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.config.section import LARGEST, Positive, PositiveNumber

PreferenceShapeName = Literal["auto", "messages", "sharegpt", "alpaca", "completion", "preference"]
"""As `conversations` has them, whose answers are the preferred ones; `preference`: `chosen` and `rejected`."""


class PreferenceSource(ConversationSource):
    """One source of pairs, or of conversations whose last answers are the preferred ones."""

    shape: PreferenceShapeName = "auto"  # type: ignore[assignment]  # a wider choice
    """`preference`: `chosen` and `rejected`, as texts after `prompt`, or as lists of messages, with their prompt or
    after `prompt`. The others as in `conversations`. auto: by the fields of the first row."""


class PreferencesConfig(ConversationsConfig):
    """From sources to shards of pairs: the same prompt, and two answers of which the first is preferred."""

    sources: Annotated[list[PreferenceSource], Field(min_length=1)] = [  # type: ignore[assignment]  # a wider choice
        PreferenceSource(corpus="shakespeare")
    ]
    """Where the pairs come from, in order. The corpus gives the last replies of its plays' dialogues."""
    max_tokens: Annotated[int, Field(ge=16, le=LARGEST)] = 256
    """Longest pair in tokens: the prompt twice, and both answers."""
    rejected: Literal["sample", "other"] = "sample"
    """The other answer where a source has none. `sample`: the model's own, of --model (SPIN, arXiv 2401.01335);
    `other`: the answer to another prompt."""
    temperature: PositiveNumber = 1.0
    """Of these samples."""
    max_pairs: Positive | None = 4000
    """Pairs of the training split, at most, which are drawn; an eighth of it of the other two each. null: all."""
