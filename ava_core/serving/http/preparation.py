"""From a validated body to the engine's requests: templates and tokens. In a worker, for both may take their time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ava_core.generation.prompts import encode
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest
from ava_core.serving.models import Served
from ava_core.serving.requests import Request

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For tokenizers without one of their own: base models, which know no turns but may continue a dialogue."""


@dataclass(frozen=True)
class Prepared:
    """What goes into the engine.

    Attributes:
        requests: one per choice of each prompt.
        echoes: text to put before each choice's.
        prompt_tokens: of all prompts together.
    """

    requests: list[Request]
    echoes: list[str]
    prompt_tokens: int


def prepare_completion(body: CompletionRequest, served: Served) -> Prepared:
    """The requests of a completion.

    Raises:
        HttpError: a prompt doesn't fit the model.
    """
    requests, echoes, prompt_tokens = [], [], 0
    for prompt in body.prompts():
        ids = _tokens(served, prompt)
        requests += _requests(body, served, ids, body.max_tokens, body.logprobs)
        echoes += ["" if not body.echo else str(served.tokenizer.decode(ids))] * body.choices
        prompt_tokens += len(ids)
    return Prepared(requests, echoes, prompt_tokens)


def prepare_chat(body: ChatRequest, served: Served, chat_template: str | None) -> Prepared:
    """The requests of a chat, by `chat_template`, the tokenizer's own, or `CHAT_TEMPLATE`.

    Raises:
        HttpError: the template refuses the messages, or they don't fit the model.
    """
    template = chat_template or getattr(served.tokenizer, "chat_template", None) or CHAT_TEMPLATE
    try:
        text = served.tokenizer.apply_chat_template(
            [message.plain() for message in body.messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise HttpError(400, f"messages: the chat template refuses them: {error}", param="messages") from error
    ids = _tokens(served, text, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = _requests(body, served, ids, body.max_completion_tokens or body.max_tokens, logprobs)
    return Prepared(requests, [""] * len(requests), len(ids))


def _tokens(served: Served, prompt: str | list[int], param: str = "prompt") -> list[int]:
    tokenizer = served.tokenizer
    if isinstance(prompt, list):
        unknown = next((token for token in prompt if token >= len(tokenizer)), None)
        if unknown is not None:
            raise HttpError(400, f"prompt: token {unknown}: must be < {len(tokenizer)}", param="prompt")
        return prompt
    longest = _longest_token(tokenizer)
    if longest and len(prompt) > longest * served.engine.context:
        raise HttpError(
            400,
            f"{param}: {len(prompt)} characters are more than {len(prompt) // longest} tokens: the model's context"
            f" holds {served.engine.context}",
            code="context_length_exceeded",
            param=param,
        )
    return encode(tokenizer, prompt)


@lru_cache(maxsize=8)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters that a token stands for at most; 0 where that can't be told from the vocabulary.

    A byte-level token is spelt with a character per byte. Normalisation could leave anything out.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or type(backend.pre_tokenizer).__name__ != "ByteLevel":
        return 0
    return max(map(len, backend.get_vocab(with_added_tokens=True)))


def _requests(
    body: GenerationRequest, served: Served, ids: list[int], wanted: int | None, logprobs: int | None
) -> list[Request]:
    context = served.engine.context
    room = context - len(ids)
    if room < 1 or (wanted or 1) > room:
        raise HttpError(
            400,
            f"prompt of {len(ids)} tokens and max_tokens = {wanted}: the model's context holds {context}: at most"
            f" {max(room, 0)} tokens can follow",
            code="context_length_exceeded",
            param="max_tokens" if room >= 1 else "prompt",
        )
    settings = body.settings(wanted or room)
    first = body.seed % 2**63 if body.seed is not None else random.getrandbits(62)
    prompt_ids = tuple(ids)
    return [
        Request(
            prompt_ids=prompt_ids,
            strategy=body.strategy,
            settings=settings,
            seed=first + index,
            logprobs=logprobs,
            ignore_end=bool(body.ignore_eos),
        )
        for index in range(body.choices)
    ]
