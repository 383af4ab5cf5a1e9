"""Conversations as tokens, and which of them are learnt: the assistant's words, and the tokens that end them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ava_core.alignment.conversation import Conversation, Message, RowFault
from ava_core.errors import first_line
from ava_core.generation.chat import encode_pieces, end_of_turn, render_chat

Pieces = list[str | int]
"""Texts, and ids of special tokens between them."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedConversation:
    """Attributes:
    name: of the conversation.
    tokens: (n,), int64.
    learnt: (n,), bool: the tokens of the assistant's answers.
    num_bytes: UTF-8 bytes of the answers.
    """

    name: str
    tokens: np.ndarray
    learnt: np.ndarray
    num_bytes: int

    def __len__(self) -> int:
        """n."""
        return len(self.tokens)


def encode_conversation(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> EncodedConversation:
    """The tokens that the tokenizer's template makes of a conversation.

    What an answer adds to the text is found by rendering up to where it begins, and up to where it ends, so that any
    template will do that doesn't write the past anew. A message that spells a special token out gets the tokens of its
    characters.

    Raises:
        RowFault: the template refuses the conversation, or an answer changes what came before it.
    """
    messages = conversation.messages
    done: Pieces = []
    tokens: list[int] = []
    learnt: list[bool] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        asked = _render(tokenizer, messages[:index], answer=True)
        whole = _render(tokenizer, messages[: index + 1], answer=False)
        for text, is_answer in ((_after(done, asked), False), (_after(asked, whole), True)):
            if text is None:
                raise RowFault(
                    f"message {index + 1}: the chat template writes what came before this answer anew, so what is"
                    " learnt can't be told from it: give the tokenizer another chat_template"
                )
            added = encode_pieces(tokenizer, text) if text else []
            tokens += added
            learnt += [is_answer] * len(added)
        done = whole
    said = sum(len(message.content.encode()) for message in messages if message.role == "assistant")
    return EncodedConversation(conversation.name, np.asarray(tokens), np.asarray(learnt, bool), said)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> list[int]:
    """The tokens up to where the assistant's next answer begins; raises as `encode_conversation`."""
    return encode_pieces(tokenizer, _render(tokenizer, messages, answer=True))


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special token that the template writes right after an answer, as `end_of_turn` finds it; where it writes
    none, the last token that it adds. Raises as `encode_conversation`."""
    if found := end_of_turn(tokenizer).tokens:
        return found
    short = Conversation("", (Message("user", "A"), Message("assistant", "B")))
    return (int(encode_conversation(tokenizer, short).tokens[-1]),)


def divide(conversation: Conversation, lengths: Sequence[int], max_tokens: int) -> list[Conversation]:
    """A conversation in parts of whole exchanges, each with the system's message, as long as they may be.

    An exchange that is too long by itself is a part of its own.

    Args:
        conversation: what is divided.
        lengths: tokens of each message, with those of the template.
        max_tokens: what a part may have.
    """
    head = 1 if conversation.messages[0].role == "system" else 0
    system, turns = conversation.messages[:head], conversation.messages[head:]
    parts: list[list[Message]] = []
    left = 0
    for start in range(0, len(turns), 2):
        needed = sum(lengths[head + start : head + start + 2])
        if not parts or needed > left:
            parts.append([])
            left = max_tokens - sum(lengths[:head])
        parts[-1] += turns[start : start + 2]
        left -= needed
    if len(parts) == 1:
        return [conversation]
    return [
        Conversation(f"{conversation.name}.{number}", (*system, *part), conversation.document)
        for number, part in enumerate(parts, start=1)
    ]


def _render(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], *, answer: bool) -> Pieces:
    try:
        rendered = render_chat(tokenizer, [message.as_dict() for message in messages], answer=answer)
    except TemplateError as error:
        raise RowFault(f"the chat template refuses it: {first_line(error)}") from error
    return [piece for piece in rendered if piece != ""]


def _after(before: Pieces, whole: Pieces) -> Pieces | None:
    """What `whole` has after `before`; None if it doesn't begin with it.

    Where that is in the middle of a text, the two parts get tokens of their own, as they do when a model is asked and
    then answers.
    """
    if not before:
        return whole
    *same, last = before
    there = whole[len(same)] if len(whole) > len(same) else None
    if whole[: len(same)] != same or there is None:
        return None
    rest = whole[len(before) :]
    if there == last:
        return rest
    if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
        return [there[len(last) :], *rest]
    return None
