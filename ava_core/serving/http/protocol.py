"""OpenAI's requests as typed models: https://platform.openai.com/docs/api-reference. Unknown fields are refused.

`top_k`, `min_p` and `repetition_penalty` are extensions, under the names that other servers use for them. What the
decoder can't do is refused where it would change the answer, and taken where it is off.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ava_core.config.schema import GenerationConfig

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Off = Annotated[float, Field(ge=0, le=0)]
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions."""
MAX_CHOICES = 16
MAX_LOGPROBS = 20


class StreamOptions(BaseModel):
    """What a stream holds beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What completions and chat completions have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] | None = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Off | None = 0.0
    frequency_penalty: Off | None = 0.0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: str | None = None

    @property
    def strategy(self) -> str:
        """Temperature 0 is greedy, as with OpenAI."""
        return "greedy" if self.temperature == 0 else "nucleus"

    @property
    def choices(self) -> int:
        """Continuations of each prompt."""
        return self.n or 1

    def settings(self, new_tokens: int) -> GenerationConfig:
        """For the sampler; null means the default."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationConfig(
            max_new_tokens=new_tokens,
            temperature=float(self.temperature or 1.0),
            top_p=float(1.0 if self.top_p is None else self.top_p),
            top_k=max(self.top_k or 0, 0),
            min_p=float(self.min_p or 0.0),
            repetition_penalty=float(1.0 if self.repetition_penalty is None else self.repetition_penalty),
            stop=[stop for stop in stops if stop],
        )


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)] = ""
    max_tokens: Annotated[int, Field(ge=1)] | None = DEFAULT_MAX_TOKENS
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
