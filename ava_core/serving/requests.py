"""Requests to the serving engine, and the deltas that it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError
from ava_core.generation.constraints import Guide


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to continue.

    Attributes:
        prompt_ids: its tokens, at least one.
        strategy: any of `STRATEGIES` but beam and contrastive.
        settings: lengths, filters and stop strings.
        seed: of the sequence's random generator.
        logprobs: number of most probable tokens whose log-probabilities are given with each token; None: none at all.
        ignore_end: go on past the end of the document, to the limit of tokens.
        echo: begin the text with the prompt, and its log-probabilities with the prompt's.
        prompt_only: generate nothing, whatever `settings.max_new_tokens` is.
        ends: tokens that end the text beside the end of a document.
        guide: says which tokens may come, from the first on; the sequence takes its own copy.
    """

    prompt_ids: tuple[int, ...]
    strategy: str
    settings: GenerationConfig
    seed: int
    logprobs: int | None = None
    ignore_end: bool = False
    echo: bool = False
    prompt_only: bool = False
    ends: tuple[int, ...] = ()
    guide: Guide | None = None

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate, at most."""
        return 0 if self.prompt_only else self.settings.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """A token of a sequence and how probable it was.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability; None for the first token of a prompt, which has no context.
        top: the same of the most probable tokens at its position, by id.
        data: what it adds to the text, in UTF-8: maybe a part of a character; nothing, if it is a special token. All
            tokens' together are the text, where bytes that are no UTF-8 are U+FFFD.
        offset: offset in the text, in characters, of the character that it begins or continues.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float]
    data: bytes
    offset: int


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a step adds to a sequence.

    Attributes:
        text: new text, without what may still become part of a stop string or of a character; may be empty.
        tokens: number of tokens that were generated so far.
        finish_reason: None while it goes on; "stop" at the end of a document, a stop string, or where the guide lets
            nothing follow; "length" at the limit.
        logprobs: of the tokens whose text is complete, if the request asked for them.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = field(default=())


class QueueFull(AvaError):
    """The queue is full.

    Attributes:
        retry_after: estimated seconds until it has room.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests are waiting already: try again in {retry_after:.0f} s")


class Draining(AvaError):
    """The engine takes no more requests."""


class Failed(AvaError):
    """The model failed on a request, or the engine was closed before it was done."""
