"""OpenAI's requests as typed models: https://platform.openai.com/docs/api-reference. Unknown fields are refused.

`top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `continuous_usage_stats` are extensions, under the names that
other servers use for them. What the decoder can't do is refused where it would change the answer, and taken where it
is off.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ava_core.config.schema import GenerationConfig


def _require_prompt(value: Any) -> Any:
    """One message for all alternatives, where pydantic has one for each."""
    listed = value if isinstance(value, list) and value else None
    if isinstance(value, str) or (listed and (_are(str, listed) or _are(int, listed))):
        return value
    if listed and all(isinstance(ids, list) and ids and _are(int, ids) for ids in listed):
        return value
    raise ValueError("must be a string, a list of strings, a list of tokens, or a list of such lists; none empty")


def _are(kind: type, values: list[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _require_off(value: Any) -> Any:
    if value:
        raise ValueError("isn't supported by this server: leave it out")
    return value


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Off = Annotated[float | None, BeforeValidator(_require_off)]
Text = Annotated[str, Field(min_length=1)]
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions."""
MAX_CHOICES = 16
MAX_LOGPROBS = 20
MIN_TEMPERATURE = 1e-3
"""Below it logits would be divided to infinity, so that is greedy, which it would come to anyway."""
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(BaseModel):
    """What a stream holds beside its text."""

    model_config = STRICT

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(BaseModel):
    """What completions and chat completions have in common."""

    model_config = STRICT

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = 1.0
    ignore_eos: bool | None = False
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Off = 0.0
    frequency_penalty: Off = 0.0
    logit_bias: Annotated[dict[str, Any] | None, BeforeValidator(_require_off)] = None
    user: str | None = None

    @property
    def strategy(self) -> str:
        """Temperature 0 is greedy, as with OpenAI."""
        return "nucleus" if self.temperature is None or self.temperature >= MIN_TEMPERATURE else "greedy"

    @property
    def choices(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    @property
    def new_tokens(self) -> int | None:
        """How many to generate, at most; None: what the context holds."""
        raise NotImplementedError

    @property
    def alternatives(self) -> int | None:
        """How many of the most probable tokens to give with each; None: no log-probabilities at all."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether the text begins with the prompt."""
        return False

    def settings(self, new_tokens: int) -> GenerationConfig:
        """For the sampler; null means the default."""
        return GenerationConfig(
            max_new_tokens=new_tokens,
            temperature=float(self.temperature or 1.0) if self.strategy != "greedy" else 1.0,
            top_p=float(1.0 if self.top_p is None else self.top_p),
            top_k=max(self.top_k or 0, 0),
            min_p=float(self.min_p or 0.0),
            repetition_penalty=float(1.0 if self.repetition_penalty is None else self.repetition_penalty),
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or [],
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[
        str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)], BeforeValidator(_require_prompt)
    ] = ""
    max_tokens: Annotated[int, Field(ge=0)] | None = DEFAULT_MAX_TOKENS
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @property
    def new_tokens(self) -> int | None:
        """0 for the prompt's own log-probabilities alone."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """As `echo` says."""
        return bool(self.echo)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class Part(BaseModel):
    """A part of a message's content."""

    model_config = STRICT

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it: the parts of a content as one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content, **({"name": self.name} if self.name else {})}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _require_consistent_options(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs = true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens: give one of them")
        return self

    @property
    def new_tokens(self) -> int | None:
        """By either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `top_logprobs` says."""
        return (self.top_logprobs or 0) if self.logprobs else None
