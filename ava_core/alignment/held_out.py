"""Conversations as messages, beside their tokens: what models are asked, and what answers are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ava_core.alignment.conversation import Conversation, Message
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.shards import ConversationShards
from ava_core.data.shards import SPLITS
from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json, write_json_lines

KEPT = {"sft": ("validation",), "preference": ("validation",), "prompts": SPLITS}
"""Splits whose messages are in the shards' folder, by purpose. The answers to prompts are rewarded in training too."""


def file_of(split: str) -> str:
    """Name of the file with a line for each conversation, pair or prompt of the split, in the order of its rows."""
    return f"{split}.jsonl"


def write_held_out(path: Path, conversations: Sequence[Conversation], purpose: str) -> None:
    """A line for each: its messages and facts; of a prompt its messages, the reference beside them, and facts."""
    line_of = _prompt_line if purpose == "prompts" else _line
    write_json_lines(path, map(line_of, conversations))


def read_held_out(shards: Path, count: int, *, last: bool) -> list[Answer]:
    """The answers that the first held-out conversations hold themselves: the last one of each, or the first.

    Raises:
        IntegrityError: the file can't be read.
    """
    return _read(shards / file_of("validation"), count, lambda line: _own_answer(line, last))


def read_prompts(shards: ConversationShards, split: str) -> list[Answer]:
    """The prompts of a split in the order of its rows, as answers whose `text` is empty: a model's is put there.

    Args:
        shards: those of `ava preprocess --for prompts`.
        split: its name.

    Raises:
        IntegrityError: the file can't be read, or has other prompts than were counted.
    """
    path, count = shards.folder / file_of(split), shards.splits[split].conversations
    found = _read(path, None, _asked)
    if len(found) != count:
        raise IntegrityError(f"{path}: has {len(found)} lines, and the split {count}: run `ava preprocess` again")
    return found


def _read(path: Path, count: int | None, read: Callable[[dict[str, Any]], Answer]) -> list[Answer]:
    try:
        with path.open("rb") as file:
            return [read(parse_json(line)) for line in islice(file, count)]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): run `ava preprocess` again") from error


def _line(item: Conversation) -> dict[str, Any]:
    return {"messages": [message.as_dict() for message in item.messages], "facts": item.facts}


def _prompt_line(item: Conversation) -> dict[str, Any]:
    reference = item.answer if item.is_answered else None
    return {"messages": [message.as_dict() for message in item.prompt], "reference": reference, "facts": item.facts}


def _messages(line: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(str(item["role"]), str(item["content"])) for item in line["messages"])


def _own_answer(line: dict[str, Any], last: bool) -> Answer:
    messages = _messages(line)
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    place = places[-1 if last else 0]
    return Answer(messages[:place], messages[place].content, messages[place].content, line["facts"] or {})


def _asked(line: dict[str, Any]) -> Answer:
    return Answer(_messages(line), "", line["reference"], line["facts"] or {})
