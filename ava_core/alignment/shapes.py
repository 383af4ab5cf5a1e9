"""Rows in the shapes that data sets of conversations have, as messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ava_core.alignment.conversation import Conversation, Message, RowFault, checked

Row = Mapping[str, Any]
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Shape:
    """A way to write a conversation into a row.

    Attributes:
        fields: that tell the shape from others; all are there.
        read: the messages of a row; raises RowFault.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], list[Message]]


def _messages(row: Row, name: str = "messages") -> list[Message]:
    items = _items(row, "messages", name)
    return [Message(_text(item, "role", number), _text(item, "content", number)) for number, item in items]


def _sharegpt(row: Row) -> list[Message]:
    found = []
    for number, item in _items(row, "conversations"):
        speaker = _text(item, "from", number)
        if speaker not in SHAREGPT_ROLES:
            raise RowFault(f"message {number}: from = {speaker!r}: must be one of {', '.join(SHAREGPT_ROLES)}")
        found.append(Message(SHAREGPT_ROLES[speaker], _text(item, "value", number)))
    return found


def _alpaca(row: Row) -> list[Message]:
    asked = _field(row, "instruction")
    if row.get("input"):
        asked = f"{asked}\n\n{_field(row, 'input')}"
    answer = [Message("user", asked), Message("assistant", _field(row, "output"))]
    return [Message("system", _field(row, "system")), *answer] if row.get("system") else answer


def _completion(row: Row) -> list[Message]:
    if isinstance(row["prompt"], str):
        return [Message("user", _field(row, "prompt")), Message("assistant", _field(row, "completion"))]
    return [*_messages({"messages": row["prompt"]}), *_messages({"messages": row["completion"]})]


SHAPES = {
    "messages": Shape(("messages",), _messages),
    "sharegpt": Shape(("conversations",), _sharegpt),
    "alpaca": Shape(("instruction", "output"), _alpaca),
    "completion": Shape(("prompt", "completion"), _completion),
}
"""By their names in `conversations.sources`, those with most telling fields last."""


def _preference(row: Row) -> list[Message]:
    return _side(row, "chosen")


def _side(row: Row, name: str) -> list[Message]:
    """The prompt with one of the two answers: in its list of messages already, or in `prompt`."""
    before = row.get("prompt")
    if isinstance(row[name], str):
        if before is None:
            raise RowFault(f"prompt: is missing: {name} is a text, which answers something")
        prompt = (
            [Message("user", _field(row, "prompt"))] if isinstance(before, str) else _messages({"messages": before})
        )
        return [*prompt, Message("assistant", row[name])]
    side = _messages({"messages": row[name]}, name)
    if before is None or len(side) > 1:
        return side
    prompt = [Message("user", before)] if isinstance(before, str) else _messages({"messages": before}, "prompt")
    return [*prompt, *side]


PREFERENCE = "preference"
PAIR_SHAPES = {PREFERENCE: Shape(("chosen", "rejected"), _preference), **SHAPES}
"""As `SHAPES`, for pairs: the answers of rows without a second one are the preferred ones."""


def _prompt(row: Row) -> list[Message]:
    if isinstance(row["prompt"], str):
        return [Message("user", row["prompt"])]
    messages = _messages({"messages": row["prompt"]}, "prompt")
    if not messages or messages[-1].role != "user":
        raise RowFault("prompt: the last message must be the user's")
    return messages


PROMPT_SHAPES = {**SHAPES, "prompt": Shape(("prompt",), _prompt)}
"""As `SHAPES`, for prompts: the last answers are what a model's own are compared with."""
OPEN = ("messages", "prompt")
"""Shapes of prompts that may end with the user's message."""


def shape_of(fields: Iterable[str], shapes: Mapping[str, Shape] = SHAPES) -> str | None:
    """The shape of a row with these fields; None: none has them."""
    present = set(fields)
    return next((name for name, shape in shapes.items() if present.issuperset(shape.fields)), None)


def read_conversation(name: str, row: Row, shape: str, *, answered: bool = True) -> Conversation:
    """The conversation of a row, and of a pair the answer that is worse.

    Args:
        name: of the row.
        row: its fields.
        shape: of `PAIR_SHAPES` or `PROMPT_SHAPES`.
        answered: whether it must hold an answer; else rows of the shapes `OPEN` needn't.

    Raises:
        RowFault: the row has none; the two sides of a pair are equal, or no answers to the same.
    """
    conversation = checked(name, read_row(row, shape), answered=answered or shape not in OPEN)
    if shape != PREFERENCE:
        return conversation
    *prompt, rejected = _side(row, "rejected")
    if tuple(prompt) != conversation.prompt:
        raise RowFault("rejected: answers another prompt than chosen")
    return conversation.against(rejected.content)


def read_row(row: Row, shape: str) -> list[Message]:
    """The messages of a row of one of `PAIR_SHAPES` or `PROMPT_SHAPES`, of a pair those with the preferred answer.

    Raises:
        RowFault: it lacks a field, or a field is something else than it should be.
    """
    found = (PAIR_SHAPES | PROMPT_SHAPES)[shape]
    for name in found.fields:
        if row.get(name) is None:
            present = ", ".join(sorted(key for key, value in row.items() if value is not None)) or "none"
            raise RowFault(f"{name}: is missing; the row has {present}")
    return found.read(row)


def _items(row: Row, name: str, called: str | None = None) -> Iterable[tuple[int, Any]]:
    value = row[name]
    if not isinstance(value, list):
        raise RowFault(f"{called or name}: is {type(value).__name__}, not a list of messages")
    return enumerate(value, start=1)


def _text(item: Any, key: str, number: int) -> str:
    value = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(value, str):
        raise RowFault(f"message {number}: {key}: is {type(value).__name__}, not text")
    return value


def _field(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise RowFault(f"{name}: is {type(row.get(name)).__name__}, not text")
    return row[name]
