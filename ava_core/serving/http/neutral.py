"""OpenAI's fields that this server doesn't act on, and which of their values change nothing.

Clients and frameworks write fields that they don't need, at values that ask for nothing (`tools: []`), and repeat what
answers hold. Such values are taken; any other is refused with the way out, for an answer that silently does without
would be a wrong one. A field of type `Any` is a hint or a label: no value of it changes an answer.
`tests/serving/http/test_fields.py` holds these classes against the parameter types of the package `openai`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

TOOLS = "this model calls no tools: leave it out"
TEXT = "this model reads and writes text alone: leave it out"
SAMPLING = "leave it out, or use temperature, top_p, top_k, min_p, repetition_penalty or no_repeat_ngram_size"
MISSING = "this server has no such thing: leave it out"


class Neutral:
    """Marks a field whose other values are refused.

    Args:
        values: those that change nothing.
        remedy: what to do instead of giving another.
    """

    def __init__(self, *values: Any, remedy: str) -> None:
        self.values, self.remedy = values, remedy

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Called by pydantic."""
        return core_schema.no_info_plain_validator_function(self._require_neutral)

    def _require_neutral(self, value: Any) -> None:
        if value not in self.values:
            raise ValueError(f"isn't supported: {self.remedy}")


class Fields(BaseModel):
    """An object of the API: its fields are known, of the right type, and absent where they are null."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class NeutralFields(Fields):
    """Fields of completions and chat completions."""

    presence_penalty: Annotated[Any, Neutral(0, remedy=SAMPLING)] = None
    frequency_penalty: Annotated[Any, Neutral(0, remedy=SAMPLING)] = None
    logit_bias: Annotated[Any, Neutral({}, remedy=SAMPLING)] = None
    user: str = ""


class NeutralCompletionFields(NeutralFields):
    """Fields of completions."""

    suffix: Annotated[Any, Neutral("", remedy="this model writes from left to right: leave it out")] = None


class NeutralChatFields(NeutralFields):
    """Fields of chat completions."""

    tools: Annotated[Any, Neutral([], remedy=TOOLS)] = None
    tool_choice: Annotated[Any, Neutral("none", "auto", remedy=TOOLS)] = None
    parallel_tool_calls: bool = True
    functions: Annotated[Any, Neutral([], remedy=TOOLS)] = None
    function_call: Annotated[Any, Neutral("none", "auto", remedy=TOOLS)] = None
    web_search_options: Annotated[Any, Neutral(remedy=TOOLS)] = None

    modalities: Annotated[Any, Neutral(["text"], remedy=TEXT)] = None
    audio: Annotated[Any, Neutral(remedy=TEXT)] = None
    reasoning_effort: Annotated[Any, Neutral("none", remedy="this model doesn't reason: leave it out")] = None
    verbosity: Annotated[Any, Neutral("medium", remedy="leave it out, or use max_tokens")] = None

    store: Annotated[Any, Neutral(False, remedy="nothing is stored here: leave it out")] = None
    service_tier: Annotated[Any, Neutral("auto", "default", remedy=MISSING)] = None
    moderation: Annotated[Any, Neutral(remedy=MISSING)] = None
    metadata: dict[str, Any] = {}
    safety_identifier: str = ""
    prediction: Any = None
    prompt_cache_key: str = ""
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


class NeutralStreamFields(Fields):
    """Fields of `stream_options`."""

    include_obfuscation: Annotated[Any, Neutral(False, remedy="events aren't padded: set it to false")] = None


class NeutralMessageFields(Fields):
    """Fields of a message that an assistant's messages hold, in answers or in a client's history."""

    refusal: Annotated[Any, Neutral("", remedy="put what was said into content")] = None
    audio: Annotated[Any, Neutral(remedy=TEXT)] = None
    tool_calls: Annotated[Any, Neutral([], remedy=TOOLS)] = None
    function_call: Annotated[Any, Neutral(remedy=TOOLS)] = None
    tool_call_id: Any = None
    """Of a tool's message, whose role is refused."""
    annotations: Any = None
    provider_specific_fields: Any = None
    """LiteLLM's, in each of its messages."""


class NeutralPartFields(Fields):
    """Fields of a text part in a message's content."""

    prompt_cache_breakpoint: Any = None
    cache_control: Any = None
    """Anthropic's, which gateways pass on."""
