"""A validated body as requests to the engine: chat template and tokenising. Runs in a worker thread."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.generation.chat import encode_pieces, end_of_turn, render_chat
from ava_core.generation.constraints import Constraint, Guide
from ava_core.generation.prompts import encode
from ava_core.retrieval.augmenting import WithPassages, before_messages, before_text, with_passages
from ava_core.retrieval.placing import Placed
from ava_core.retrieval.retriever import Found
from ava_core.serving.http.errors import HttpError
from ava_core.serving.http.protocol import ChatRequest, CompletionRequest, GenerationRequest
from ava_core.serving.models import Served
from ava_core.serving.requests import Request

ANSWER_SHARE = 4
"""A part of the context of 1 / ANSWER_SHARE stays free for an answer whose length nobody limits."""


@dataclass(frozen=True)
class Prepared:
    """The engine's requests of one HTTP request.

    Attributes:
        requests: one per choice of each prompt.
        prompt_tokens: number of tokens of all prompts.
        placed: the passages in each prompt, if something was looked up.
    """

    requests: list[Request]
    prompt_tokens: int
    placed: Sequence[Placed] = ()


Looked = Sequence[Sequence[Found]]
"""What was found for each prompt; empty: nothing was to be looked up."""


def prepare_completion(body: CompletionRequest, served: Served, found: Looked) -> Prepared:
    """The requests of a completion, with what was found before each prompt.

    Raises:
        HttpError: a prompt doesn't fit the model.
    """
    requests, prompt_tokens, placed = [], 0, []
    for number, prompt in enumerate(body.prompt):
        ids = _tokens(served, prompt)
        if found:
            ids, passages = _augmented(body, served, found[number], before_text(served.tokenizer, prompt))
            placed.append(passages)
        requests += _requests(body, served, ids)
        prompt_tokens += len(ids)
    return Prepared(requests, prompt_tokens, placed)


def prepare_chat(body: ChatRequest, served: Served, found: Looked, chat_template: str | None) -> Prepared:
    """The requests of a chat, by `chat_template` or as `render_chat` has it; what was found is said by the system. An
    answer ends where the template ends it, and at all ends that the model's generation_config.json lists.

    Raises:
        HttpError: the template refuses the messages, or they don't fit the model.
    """
    messages = [message.plain() for message in body.messages]
    try:
        pieces = render_chat(served.tokenizer, messages, chat_template)
    except TemplateError as error:
        raise HttpError(400, f"messages: the chat template refuses them: {error}", param="messages") from error
    _require_few(served, sum(len(piece) for piece in pieces if isinstance(piece, str)), "messages")
    ids, placed = encode_pieces(served.tokenizer, pieces), []
    if found:
        before = before_messages(served.tokenizer, messages, chat_template)
        ids, passages = _augmented(body, served, found[0], before)
        placed.append(passages)
    ends = tuple(dict.fromkeys((*end_of_turn(served.tokenizer, chat_template).tokens, *served.ends)))
    return Prepared([replace(each, ends=ends) for each in _requests(body, served, ids)], len(ids), placed)


def _augmented(
    body: GenerationRequest, served: Served, found: Sequence[Found], prompt: WithPassages
) -> tuple[list[int], Placed]:
    """The tokens of a prompt with as many passages as leave room for the answer."""
    context, wanted = served.engine.context, body.new_tokens
    answer = max(context // ANSWER_SHARE, body.min_tokens) if wanted is None else wanted
    try:
        return with_passages(served.tokenizer, found, prompt, context - answer)
    except AvaError as error:
        raise HttpError(400, f"retrieval: {error}", param="retrieval") from error


def _tokens(served: Served, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, list):
        size = len(served.tokenizer)
        unknown = next((token for token in prompt if token >= size), None)
        if unknown is not None:
            raise HttpError(400, f"prompt: token {unknown}: must be < {size}", param="prompt")
        return prompt
    _require_few(served, len(prompt), "prompt")
    return encode(served.tokenizer, prompt)


def _require_few(served: Served, characters: int, param: str) -> None:
    """Refuse what is too long for the context, however it is encoded."""
    longest = _longest_token(served.tokenizer)
    if longest and characters > longest * served.engine.context:
        raise HttpError(
            400,
            f"{param}: {characters} characters are more than {characters // longest} tokens: the model's context"
            f" holds {served.engine.context}",
            code="context_length_exceeded",
            param=param,
        )


@lru_cache(maxsize=8)
def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest token in characters; 0 where the vocabulary doesn't tell.

    A byte-level token is spelt with a character per byte. Normalisation could leave anything out.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or type(backend.pre_tokenizer).__name__ != "ByteLevel":
        return 0
    return max(map(len, backend.get_vocab(with_added_tokens=True)))


def _requests(body: GenerationRequest, served: Served, ids: list[int]) -> list[Request]:
    context, wanted = served.engine.context, body.new_tokens
    room = context - len(ids)
    if room < (1 if wanted is None else wanted):
        asked = "" if wanted is None else f" and max_tokens = {wanted}"
        raise HttpError(
            400,
            f"prompt of {len(ids)} tokens{asked}: the model's context holds {context}: at most {max(room, 0)} tokens"
            " can follow",
            code="context_length_exceeded",
            param="max_tokens" if room >= 1 else "prompt",
        )
    most = wanted or max(room, 1)
    if body.min_tokens > most:
        raise HttpError(400, f"min_tokens = {body.min_tokens}: at most {most} tokens can follow", param="min_tokens")
    settings, guide = body.settings(most), _guide(body, served)
    first = body.seed % 2**63 if body.seed is not None else random.getrandbits(62)
    prompt_ids = tuple(ids)
    return [
        Request(
            prompt_ids=prompt_ids,
            strategy=body.strategy,
            settings=settings,
            seed=first + index,
            logprobs=body.alternatives,
            ignore_end=body.ignore_eos,
            echo=body.echoes,
            prompt_only=wanted == 0,
            guide=guide,
        )
        for index in range(body.n)
    ]


def _guide(body: GenerationRequest, served: Served) -> Guide | None:
    """What the answer's text must be; compiled here, in a worker thread, once for all choices."""
    asked, field = body.response_format, "regex" if body.regex else "response_format"
    try:
        if body.regex:
            constraint = Constraint.regex(body.regex)
        elif asked.json_schema is not None:
            field = "response_format.json_schema.schema"
            constraint = Constraint.json_schema(asked.json_schema.schema_)
        elif asked.type == "json_object":
            constraint = Constraint.json_object()
        else:
            return None
        return Guide(constraint, served.tokenizer, served.engine.vocab_size)
    except AvaError as error:
        raise HttpError(400, f"{field}: {error}", param=field) from error
