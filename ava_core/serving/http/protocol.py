"""OpenAI's requests as typed models: https://platform.openai.com/docs/api-reference. Unknown fields are refused.

`top_k`, `min_p`, `typical_p`, `epsilon_cutoff`, `eta_cutoff`, `repetition_penalty`, `no_repeat_ngram_size`,
`min_tokens`, `ignore_eos`, `regex` and `continuous_usage_stats` are extensions, under the names that other servers or
Transformers use for them; so are `retrieval`, and `response_format` in completions. Fields that this server
doesn't act on are in `neutral`. Null is the same as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ava_core.config.generation import GenerationConfig
from ava_core.serving.http.neutral import (
    Fields,
    NeutralChatFields,
    NeutralCompletionFields,
    NeutralFields,
    NeutralMessageFields,
    NeutralPartFields,
    NeutralStreamFields,
)
from ava_core.serving.http.retrieval_fields import RetrievalOptions

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions."""
MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_STOPS = 4
MIN_TEMPERATURE = 1e-3
"""Below it logits would be divided to infinity, so that is greedy, which it would come to anyway."""


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


# Where the API takes one thing or a list of them, the value becomes a list, and one message tells what is wrong with
# it: pydantic would have one for each alternative.


def _listed_prompts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if value and _are(int, value):
        value = [value]
    if not (value and (_are(str, value) or (_are(list, value) and all(ids and _are(int, ids) for ids in value)))):
        raise ValueError("must be a string, a list of strings, a list of tokens, or a list of such lists; none empty")
    negative = next((token for ids in value if isinstance(ids, list) for token in ids if token < 0), None)
    if negative is not None:
        raise ValueError(f"token {negative}: must be >= 0")
    return value


def _listed_stops(value: Any) -> list[Any]:
    stops = [value] if isinstance(value, str) else value
    if not _are(str, stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} strings, not {len(stops)}")
    if "" in stops:
        raise ValueError("must not hold an empty string")
    try:
        "".join(stops).encode()
    except UnicodeEncodeError as error:
        raise ValueError("isn't valid UTF-8") from error
    return stops


def _listed_parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not (isinstance(value, list) and value):
        raise ValueError("must be a string or a list of parts, not empty")
    return value


def _require_text(kind: str) -> str:
    if kind != "text":
        raise ValueError("must be text: this model reads nothing else")
    return kind


def _require_speaker(role: Any) -> Any:
    if role in ("tool", "function"):
        raise ValueError("isn't supported: this model calls no tools: leave the message out")
    return role


class StreamOptions(NeutralStreamFields):
    """What a stream holds beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Fields):
    """`response_format.json_schema`: the schema, and what a client calls it."""

    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    name: str = ""
    description: str = ""
    strict: bool = True
    """Answers are valid in any case."""


class ResponseFormat(Fields):
    """`response_format`: what an answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _require_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(f"json_schema: must be given with type json_schema, and only then; type is {self.type}")
        return self


class GenerationRequest(NeutralFields):
    """What completions and chat completions have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)] = 0.0
    eta_cutoff: Annotated[float, Field(ge=0, lt=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    response_format: ResponseFormat = ResponseFormat(type="text")
    regex: str = ""
    """What the answer's text must match as a whole."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[str], BeforeValidator(_listed_stops)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    retrieval: RetrievalOptions | None = None
    """None: nothing is looked up."""

    @model_validator(mode="after")
    def _require_one_way_to_end(self) -> Self:
        constraints = [name for name in ("regex", "response_format") if self._constrains(name)]
        if not constraints:
            return self
        if len(constraints) > 1:
            raise ValueError("regex: can't stand beside response_format: give one of them")
        for name in ("stop", "min_tokens", "no_repeat_ngram_size", "ignore_eos"):
            if value := getattr(self, name):
                raise ValueError(
                    f"{name} = {value}: can't stand beside {constraints[0]}, which says itself how an answer ends:"
                    " leave it out"
                )
        return self

    def _constrains(self, name: str) -> bool:
        return bool(self.regex) if name == "regex" else self.response_format.type != "text"

    @property
    def strategy(self) -> str:
        """Temperature 0 is greedy, as with OpenAI."""
        return "nucleus" if self.temperature >= MIN_TEMPERATURE else "greedy"

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
        """For the sampler."""
        return GenerationConfig(
            max_new_tokens=new_tokens,
            temperature=float(self.temperature) if self.strategy != "greedy" else 1.0,
            top_p=float(self.top_p),
            top_k=max(self.top_k, 0),
            min_p=float(self.min_p),
            typical_p=float(self.typical_p),
            epsilon_cutoff=float(self.epsilon_cutoff),
            eta_cutoff=float(self.eta_cutoff),
            min_new_tokens=self.min_tokens,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            repetition_penalty=float(self.repetition_penalty),
            stop=self.stop,
        )


class CompletionRequest(GenerationRequest, NeutralCompletionFields):
    """POST /v1/completions."""

    prompt: Annotated[list[Any], BeforeValidator(_listed_prompts)] = [""]
    """Each a text, or a list of tokens."""
    max_tokens: Annotated[int, Field(ge=0)] = DEFAULT_MAX_TOKENS
    """0 for the prompt's own log-probabilities alone."""
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _require_all_candidates(self) -> Self:
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of = {self.best_of}: must be n, {self.n} here: all candidates are answered")
        return self

    @property
    def new_tokens(self) -> int | None:
        """As `max_tokens` says."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """As `echo` says."""
        return self.echo


class Part(NeutralPartFields):
    """A part of a message's content."""

    type: Annotated[str, AfterValidator(_require_text)]
    text: str


class Message(NeutralMessageFields):
    """One message of a chat."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_require_speaker)]
    content: Annotated[list[Part], BeforeValidator(_listed_parts)] = []
    name: str = ""

    @model_validator(mode="after")
    def _require_content(self) -> Self:
        if not self.content and self.role != "assistant":
            raise ValueError(f"content: must be given in a message of the {self.role}")
        return self

    def plain(self) -> dict[str, str]:
        """As chat templates take it: the parts of a content as one text."""
        content = "".join(part.text for part in self.content)
        return {"role": self.role, "content": content, **({"name": self.name} if self.name else {})}


class ChatRequest(GenerationRequest, NeutralChatFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0

    @model_validator(mode="after")
    def _require_consistent_options(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs = true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError(
                f"max_tokens = {self.max_tokens} and max_completion_tokens = {self.max_completion_tokens}: give one of"
                " them, or the same value"
            )
        return self

    @property
    def new_tokens(self) -> int | None:
        """By either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """As `top_logprobs` says."""
        return self.top_logprobs if self.logprobs else None
