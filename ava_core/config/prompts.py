"""The section `prompts`: what `ava preprocess --for prompts` makes shards of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.config.section import LARGEST, Positive

PromptShapeName = Literal["auto", "messages", "sharegpt", "alpaca", "completion", "prompt"]
"""As `conversations` has them, whose last answers become the references; `prompt`: rows without an answer."""


class PromptSource(ConversationSource):
    """One source of prompts, or of conversations whose last answers are what a model's own are compared with."""

    shape: PromptShapeName = "auto"  # type: ignore[assignment]  # a wider choice
    """`prompt`: a text, or a list of messages that ends with the user's. The others as in `conversations`; `messages`
    may end with the user's too. auto: by the fields of the first row."""


class PromptsConfig(ConversationsConfig):
    """From sources to shards of prompts, which a model answers and is rewarded for."""

    sources: Annotated[list[PromptSource], Field(min_length=1)] = [  # type: ignore[assignment]  # a wider choice
        PromptSource(corpus="shakespeare")
    ]
    """Where the prompts come from, in order. The corpus gives what its plays' dialogues have before their last reply.
    Tasks of `gym` that only check answers give prompts without a reference."""
    max_tokens: Annotated[int, Field(ge=8, le=LARGEST)] = 128
    """Longest prompt in tokens, with those of its template; longer ones are left out, counted and named. Dialogues of
    a corpus are divided before, into parts that are about as long."""
    max_prompts: Positive | None = 4000
    """Prompts of the training split, at most, which are drawn; an eighth of it of the other two each. null: all."""
    min_reference_lines: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Only prompts whose reference has at least so many lines, without blank ones; nearly half of the plays' replies
    have one. 0: those without a reference too."""
