"""OpenAI's answers: whole ones and the chunks of a stream, for completions and for chats."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ava_core.serving.requests import Delta, TokenLogprobs

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Choice:
    """What one sequence has said so far."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take a delta in."""
        self.text += delta.text
        self.tokens, self.finish_reason = delta.tokens, delta.finish_reason
        self.logprobs += delta.logprobs


class Answer:
    """One answer to a client.

    Args:
        model: name of the model.
        chat: for chat completions; else completions.
        prompt_tokens: of all prompts together.
        tokenizer: names tokens in log-probabilities.
        echoes: completions: texts to put before each choice's.
    """

    def __init__(self, model: str, *, chat: bool, prompt_tokens: int, tokenizer: Any, echoes: list[str]) -> None:
        self.chat, self.prompt_tokens, self.tokenizer, self.echoes = chat, prompt_tokens, tokenizer, echoes
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.offsets = [len(echo) for echo in echoes]
        self.chunk_head = {**self.head, "object": "chat.completion.chunk"} if chat else self.head

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The answer at once."""
        listed = []
        for index, choice in enumerate(choices):
            said: dict[str, Any] = {"text": self.echoes[index] + choice.text}
            if self.chat:
                said = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            logprobs = self._logprobs(index, choice.logprobs)
            listed.append({"index": index, **said, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        return {**self.head, "choices": listed, "usage": self.usage(sum(choice.tokens for choice in choices))}

    def opening(self, index: int) -> bytes:
        """What a choice's stream begins with; may be empty."""
        if self.chat:
            return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)
        return self._chunk(index, {"text": self.echoes[index]}, None, None) if self.echoes[index] else b""

    def chunk(self, index: int, delta: Delta, tokens: int | None = None) -> bytes:
        """A delta as an event; with the usage if the number of tokens so far is given."""
        said = {"delta": {"content": delta.text} if delta.text else {}} if self.chat else {"text": delta.text}
        return self._chunk(index, said, self._logprobs(index, delta.logprobs), delta.finish_reason, tokens)

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
        return event({**self.chunk_head, "choices": [choice], **usage})

    def _logprobs(self, index: int, given: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not given:
            return None
        if self.chat:
            return {"content": [self._chat_logprob(each) for each in given], "refusal": None}
        names = [self._name(each.token) for each in given]
        offsets = list(accumulate(map(len, names), initial=self.offsets[index]))
        self.offsets[index] = offsets.pop()
        return {
            "tokens": names,
            "token_logprobs": [each.logprob for each in given],
            "top_logprobs": [{self._name(token): value for token, value in each.top.items()} for each in given],
            "text_offset": offsets,
        }

    def _chat_logprob(self, given: TokenLogprobs) -> dict[str, Any]:
        def entry(token: int, value: float) -> dict[str, Any]:
            name = self._name(token)
            return {"token": name, "logprob": value, "bytes": list(name.encode())}

        return {
            **entry(given.token, given.logprob),
            "top_logprobs": [entry(token, value) for token, value in given.top.items()],
        }

    def _name(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))
