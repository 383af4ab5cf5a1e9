"""Prompts with what was looked up before them: in-context retrieval (RALM, Ram et al. 2023, arXiv 2302.00083)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ava_core.generation.chat import encode_messages
from ava_core.generation.prompts import encode, encode_text
from ava_core.retrieval.folder import Mode
from ava_core.retrieval.placing import Placed, place
from ava_core.retrieval.retriever import Found, Retriever, query_of

WithPassages = Callable[[str], list[int]]
"""The tokens of a prompt with this text before it; of the prompt alone for an empty text."""


@dataclass(frozen=True)
class LookUp:
    """What is looked up for each prompt.

    Attributes:
        retriever: finds it.
        top_k: passages, at most.
        mode: how they are searched for; None: as the index allows.
        labels: access labels of who asks.
    """

    retriever: Retriever
    top_k: int = 4
    mode: Mode | None = None
    labels: Collection[str] = ()

    def find(self, prompt: str) -> list[Found]:
        """The passages for a prompt, which is never too long for that; none for an empty one."""
        query = query_of(prompt)
        return self.retriever.search(query, self.top_k, mode=self.mode, labels=self.labels) if query else []


def before_text(tokenizer: Any, prompt: str) -> WithPassages:
    """Passages before a text that is to be continued."""
    return lambda passages: encode(tokenizer, passages + prompt)


def before_messages(tokenizer: Any, messages: Sequence[Mapping[str, str]], template: str | None = None) -> WithPassages:
    """Passages in a chat: at the end of what the system says first, or as a message of the system of their own."""
    begun = bool(messages) and messages[0]["role"] == "system"
    system = messages[0] if begun else {"role": "system", "content": ""}
    rest = messages[1:] if begun else messages

    def encoded(passages: str) -> list[int]:
        said = "\n\n".join(part for part in (system["content"], passages.strip()) if part)
        first = [{**system, "content": said}] if said or begun else []
        return encode_messages(tokenizer, [*first, *rest], template)

    return encoded


def with_passages(tokenizer: Any, found: Sequence[Found], prompt: WithPassages, most: int) -> tuple[list[int], Placed]:
    """The tokens of a prompt with as many passages before it as fit; the prompt itself is never cut.

    Args:
        tokenizer: of the model.
        found: the passages, the best first.
        prompt: gives its tokens.
        most: tokens that the whole may have.
    """
    alone = prompt("")
    budget = most - len(alone)
    while budget > 0:
        placed = place(found, budget, lambda text: len(encode_text(tokenizer, text)))
        if not placed.found:
            break
        tokens = prompt(placed.text)
        if len(tokens) <= most:
            return tokens, placed
        budget -= len(tokens) - most  # of what a template writes around a message
    return alone, Placed("")


def last_question(messages: Sequence[Mapping[str, str]]) -> str:
    """What the user said last, which is what is looked up; empty if there is nothing."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
