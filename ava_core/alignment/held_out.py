"""Held-out conversations as messages, beside their tokens: what models are asked, and what answers are judged by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ava_core.alignment.conversation import Conversation, Message
from ava_core.alignment.rewards.answer import Answer
from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json

HELD_OUT = "validation.jsonl"
"""In the shards' folder: a line for each conversation, or pair, of the validation split, in the order of its rows."""


def write_held_out(path: Path, conversations: Sequence[Conversation]) -> None:
    """A line for each."""
    lines = [
        {"messages": [message.as_dict() for message in item.messages], "facts": item.facts} for item in conversations
    ]
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")


def read_held_out(shards: Path, count: int, *, last: bool) -> list[Answer]:
    """The answers that the first conversations hold themselves: the last one of each, or the first.

    Raises:
        IntegrityError: the file can't be read.
    """
    path = shards / HELD_OUT
    try:
        with path.open("rb") as file:
            return [_answer(parse_json(line), last) for line, _ in zip(file, range(count), strict=False)]
    except (OSError, ValueError, TypeError, KeyError, StopIteration) as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): run `ava preprocess` again") from error


def _answer(line: dict, last: bool) -> Answer:
    messages = tuple(Message(str(item["role"]), str(item["content"])) for item in line["messages"])
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    place = places[-1 if last else 0]
    return Answer(messages[:place], messages[place].content, messages[place].content, line["facts"] or {})
