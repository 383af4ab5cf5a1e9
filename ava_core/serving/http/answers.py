"""OpenAI's answers: whole ones and the chunks of a stream, for completions and for chats."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ava_core.generation.token_bytes import token_bytes
from ava_core.serving.requests import Delta, TokenLogprobs

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Choice:
    """The text of one sequence so far."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.tokens, self.finish_reason = delta.tokens, delta.finish_reason
        self.logprobs += delta.logprobs


class Answer:
    """One answer to a client.

    Args:
        model: name of the model.
        chat: for chat completions; else completions.
        prompt_tokens: number of tokens of all prompts.
        tokenizer: gives the texts of tokens in log-probabilities.
        sources: the passages that stood in the prompts; None: nothing was to be looked up.
    """

    def __init__(
        self,
        model: str,
        *,
        chat: bool,
        prompt_tokens: int,
        tokenizer: Any,
        sources: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self.chat, self.prompt_tokens, self.tokens = chat, prompt_tokens, token_bytes(tokenizer)
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._sources = {} if sources is None else {"retrieval": sources}
        self.chunk_head = {**self.head, "object": "chat.completion.chunk"} if chat else self.head

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The body of an answer that isn't streamed."""
        listed = []
        for index, choice in enumerate(choices):
            said: dict[str, Any] = {"text": choice.text}
            if self.chat:
                said = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            logprobs = self._logprobs(choice.logprobs)
            listed.append({"index": index, **said, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        usage = self.usage(sum(choice.tokens for choice in choices))
        return {**self.head, "choices": listed, "usage": usage, **self._sources}

    def opening(self, index: int) -> bytes:
        """The first chunk of a choice, with its role; empty for a completion."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None) if self.chat else b""

    def chunk(self, index: int, delta: Delta, tokens: int | None = None) -> bytes:
        """A delta as an event; with the usage if the number of tokens so far is given."""
        said = {"delta": {"content": delta.text} if delta.text else {}} if self.chat else {"text": delta.text}
        return self._chunk(index, said, self._logprobs(delta.logprobs), delta.finish_reason, tokens)

    def closing(self, tokens: int) -> bytes:
        """The event with the usage."""
        return event({**self.chunk_head, "choices": [], "usage": self.usage(tokens)})

    def usage(self, tokens: int) -> dict[str, int]:
        """Token counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _chunk(
        self, index: int, said: dict[str, Any], logprobs: Any, finish_reason: str | None, tokens: int | None = None
    ) -> bytes:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {} if tokens is None else {"usage": self.usage(tokens)}
        sources, self._sources = self._sources, {}  # the first chunk has them
        return event({**self.chunk_head, "choices": [choice], **usage, **sources})

    def _logprobs(self, given: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not given:
            return None
        if self.chat:
            return {"content": [self._chat_logprob(each) for each in given], "refusal": None}
        return {
            "tokens": [self.tokens.name(each.token) for each in given],
            "token_logprobs": [each.logprob for each in given],
            "top_logprobs": [None if each.logprob is None else self._top(each) for each in given],
            "text_offset": [each.offset for each in given],
        }

    def _top(self, given: TokenLogprobs) -> dict[str, Any]:
        """The most probable tokens by name, and the chosen one; of two that have one name, the second by its id."""
        named: dict[str, Any] = {}
        for token, value in {**given.top, given.token: given.logprob}.items():
            name = self.tokens.name(token)
            named[f"token_id:{token}" if name in named else name] = value
        return named

    def _chat_logprob(self, given: TokenLogprobs) -> dict[str, Any]:
        def entry(token: int, value: float | None, data: bytes) -> dict[str, Any]:
            return {"token": self.tokens.name(token), "logprob": value, "bytes": list(data)}

        return {
            **entry(given.token, given.logprob, given.data),
            "top_logprobs": [entry(token, value, self.tokens[token]) for token, value in given.top.items()],
        }
