"""Conversations from sources: the rows of files and the dialogues of plays, faults named, in the splits of the text."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.alignment.conversation import Conversation, Message, RowFault
from ava_core.alignment.gym import conversations_of
from ava_core.alignment.plays import dialogues
from ava_core.alignment.shapes import SHAPES, Shape, read_conversation, shape_of
from ava_core.alignment.tokens import divide
from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.config.data import SplitConfig
from ava_core.data.shards import SPLITS, document_names
from ava_core.data.sources import open_each
from ava_core.data.tokenizer import encode, read_tokenizer
from ava_core.errors import AvaError

log = logging.getLogger(__name__)
MAX_FAULTS = 20
"""Faulty rows named in one refusal."""
TEMPLATE_TOKENS = 4
"""What a template writes around a message, about, to divide dialogues by; what is too long after all is left out."""
SMALLER = 8
"""The part of what may be drawn for the training split that each of the other two may have."""


@dataclass
class Gathered:
    """The conversations that were found, and the rows that gave none.

    Attributes:
        conversations: in the order of their sources.
        faults: name of the row, and what is wrong with it.
        duplicates: conversations that had been there already.
    """

    conversations: list[Conversation] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0


def gather(
    config: ConversationsConfig,
    data: Path | None,
    tokenizer: Path,
    longest: int,
    shapes: Mapping[str, Shape] = SHAPES,
    *,
    answered: bool = True,
) -> Gathered:
    """The conversations of all sources, each once.

    Args:
        config: the section with the sources.
        data: the folder given with --data; may be None if no source needs it.
        tokenizer: folder of the tokenizer.
        longest: tokens of a conversation, about, beyond which dialogues of plays are divided.
        shapes: that rows may have.
        answered: whether each must hold an answer; else prompts alone are taken too.

    Raises:
        AvaError: a source can't be read, a row holds no conversation (up to 20 are named), or there is none.
    """
    found, seen = Gathered(), set[tuple[tuple[Message, ...], str | None]]()
    opened = open_each(config.sources, None, data)
    for entry, source in zip(config.sources, opened, strict=True):
        if entry.gym is not None:
            read = conversations_of(source, found.faults, answered=answered)
        elif entry.corpus is not None:
            read = _of_plays(source, longest, tokenizer)
        else:
            read = _of_rows(entry, source, shapes, found.faults, answered)
        for conversation in read:
            conversation = _with_system(conversation, config.system)
            # One question to check may have several right answers, and must not be in two splits.
            messages = conversation.prompt if conversation.facts else conversation.messages
            said = (messages, conversation.rejected)
            if said in seen:
                found.duplicates += 1
                continue
            seen.add(said)
            found.conversations.append(conversation)
    if found.faults and config.faulty == "refuse":
        named = [f"{name}: {reason}" for name, reason in found.faults[:MAX_FAULTS]]
        if len(found.faults) > MAX_FAULTS:
            named.append(
                f"and {len(found.faults) - MAX_FAULTS} more rows: mend them, or set faulty: leave_out in their section"
            )
        raise AvaError(*named)
    if not found.conversations:
        raise AvaError("sources: hold no conversation: give others")
    return found


def _of_plays(source: Any, longest: int, folder: Path) -> Iterator[Conversation]:
    tokenizer = read_tokenizer(folder)
    for document in source.documents():
        for conversation in dialogues(document.text, document.name):
            lengths = [len(tokens) for tokens in encode(tokenizer, (m.content for m in conversation.messages))]
            yield from divide(conversation, [length + TEMPLATE_TOKENS for length in lengths], longest)


def _of_rows(
    entry: ConversationSource,
    source: Any,
    shapes: Mapping[str, Shape],
    faults: list[tuple[str, str]],
    answered: bool,
) -> Iterator[Conversation]:
    shape: str | None = None if entry.shape == "auto" else entry.shape
    for row in source.rows():
        if shape is None:
            present = [name for name, value in row.values.items() if value is not None]
            shape = shape_of(present, shapes)
            if shape is None:
                known = "; ".join(f"{name}: {', '.join(kind.fields)}" for name, kind in shapes.items())
                raise AvaError(
                    f"{row.name}: has the fields {', '.join(sorted(present)) or 'none'}, of no shape that is known"
                    f" ({known}): rename them, or set the source's shape"
                )
            log.info("preprocess: %s: rows are of the shape %s", source.name, shape)
        try:
            yield read_conversation(row.name, row.values, shape, answered=answered)
        except RowFault as fault:
            faults.append((row.name, str(fault)))


def _with_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or conversation.messages[0].role == "system":
        return conversation
    return replace(conversation, messages=(Message("system", system), *conversation.messages))


def divide_among_splits(
    conversations: Iterable[Conversation], config: ConversationsConfig, shards: Path
) -> dict[str, list[Conversation]]:
    """Conversations by split: with their document, or by a salted hash of what was said before the last answer, without
    the system's message, which a section may add.

    So a row is in the same split whatever is made of it, be it a conversation, a pair or a prompt, and whatever else is
    in its file; and none of a prompt's other answers is in another split.

    Raises:
        AvaError: there are fewer prompts than splits.
    """
    split_of = {name: split for split in SPLITS for name in document_names(shards, split)}
    splits: dict[str, list[Conversation]] = {name: [] for name in SPLITS}
    others: list[Conversation] = []
    for conversation in conversations:
        if conversation.document in split_of:
            splits[split_of[conversation.document]].append(conversation)
        else:
            others.append(conversation)
    if others:
        digests = [_digest(item, config.split.salt) for item in others]
        split_by_digest = _by_share(digests, config.split)
        for digest, item in zip(digests, others, strict=True):
            splits[split_by_digest[digest]].append(item)
    return splits


def _by_share(digests: Iterable[str], config: SplitConfig) -> dict[str, str]:
    """The split of each digest: where it lies among all that there could be, not among those that there are. Of so few
    that a split would be empty, it gets the nearest one."""
    ranked = sorted(set(digests))
    if len(ranked) < len(SPLITS):
        raise AvaError(
            f"sources: hold {len(ranked)} different prompts: train, validation and test need one each: add rows"
        )
    shares = [int(digest, 16) / 16 ** len(digest) for digest in ranked]
    first = min(max(bisect_left(shares, config.train), 1), len(ranked) - 2)
    second = min(max(bisect_left(shares, config.train + config.validation), first + 1), len(ranked) - 1)
    bounds = zip(SPLITS, (0, first, second), (first, second, len(ranked)), strict=True)
    return {digest: name for name, start, end in bounds for digest in ranked[start:end]}


def drawn(conversations: Sequence[Conversation], split: str, most: int | None, seed: int) -> list[Conversation]:
    """At most `most` of the training split's, or an eighth of that of another split's, in their order; None: all."""
    limit = most if split == "train" or most is None else -(-most // SMALLER)
    if limit is None or len(conversations) <= limit:
        return list(conversations)
    chosen = np.random.default_rng(seed).choice(len(conversations), limit, replace=False)
    return [conversations[number] for number in sorted(chosen.tolist())]


def _digest(item: Conversation, salt: str) -> str:
    said = [(message.role, message.content) for message in item.prompt if message.role != "system"]
    return hashlib.sha256(json.dumps([salt, *said]).encode()).hexdigest()
