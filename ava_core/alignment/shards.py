"""Shards of conversations: one folder per split in the layout of `datasets.save_to_disk`.

A row is a conversation: `name`, `tokens`, `learnt` (which of them are answers), `num_bytes` (of the answers). Those
of a pair follow each other, the preferred one first; of both the last answer is learnt. Of a prompt nothing is.
`conversations.json` beside the folders holds the counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.alignment.tokens import EncodedConversation
from ava_core.data.shard_writing import DATASETS_NAME, save_quietly, token_dtype
from ava_core.data.shards import SPLITS, shard_files
from ava_core.data.tokenizer import SpecialIds, special_ids
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import parse_json, write_json

INFO_NAME = "conversations.json"
MADE_OF = {"sft": "conversations", "preference": "preferences", "prompts": "prompts"}
"""What the shards for a purpose hold, and the section that says of what they are made."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Counts of one split.

    Attributes:
        conversations: rows.
        answers: turns of the assistant.
        tokens: of all conversations.
        learnt: of them, those of answers.
        answer_bytes: UTF-8 bytes of the answers.
    """

    conversations: int
    answers: int
    tokens: int
    learnt: int
    answer_bytes: int

    def figures(self, purpose: str) -> dict[str, int]:
        """Those that shards for this purpose have, by the names that metrics call them."""
        if purpose == "prompts":
            return {"prompts": self.conversations, "tokens": self.tokens}
        return asdict(self)


def write_split(name: str, folder: Path, conversations: Sequence[EncodedConversation], vocab_size: int) -> SplitCounts:
    """Write the split `name`; the bytes depend on the conversations alone.

    Raises:
        AvaError: there is no conversation.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if not conversations:
        raise AvaError(f"{name}: no conversation: a split needs at least one: give more, or longer max_tokens")
    dtype = token_dtype(vocab_size)
    offsets = pa.array(np.cumsum([0, *map(len, conversations)]), type=pa.int32())
    tokens = np.concatenate([item.tokens for item in conversations]).astype(dtype)
    learnt = np.concatenate([item.learnt for item in conversations])
    table = pa.table(
        {
            "name": pa.array([item.name for item in conversations]),
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
            "learnt": pa.ListArray.from_arrays(offsets, pa.array(learnt)),
            "num_bytes": pa.array([item.num_bytes for item in conversations], pa.int64()),
        }
    )
    names = json.dumps([item.name for item in conversations]).encode()
    fingerprint = hashlib.sha256(names + tokens.tobytes() + learnt.tobytes()).hexdigest()[:16]
    save_quietly(Dataset(InMemoryTable(table), fingerprint=fingerprint), folder, 1)
    starts = np.diff(learnt.astype(np.int8), prepend=0) == 1
    return SplitCounts(
        conversations=len(conversations),
        answers=int(starts.sum()),
        tokens=len(tokens),
        learnt=int(learnt.sum()),
        answer_bytes=sum(item.num_bytes for item in conversations),
    )


def write_info(folder: Path, purpose: str, max_tokens: int, splits: dict[str, SplitCounts]) -> None:
    """Write `folder`/conversations.json, and what `datasets` looks for."""
    counts = {name: asdict(split) for name, split in splits.items()}
    write_json(folder / INFO_NAME, {"for": purpose, "max_tokens": max_tokens, "splits": counts})
    (folder / DATASETS_NAME).write_text(json.dumps({"splits": list(splits)}) + "\n")


@dataclass(frozen=True)
class ConversationShards:
    """The output of `ava preprocess --for sft|preference|prompts`.

    Attributes:
        folder: holds it.
        purpose: what it was made for.
        max_tokens: the longest conversation has no more.
        splits: counts by name of the split.
    """

    folder: Path
    purpose: str
    max_tokens: int
    splits: dict[str, SplitCounts]

    @classmethod
    def open(cls, folder: Path, purpose: str = "sft") -> ConversationShards:
        """Open the output of `ava preprocess --for PURPOSE`.

        Raises:
            AvaError: it is none.
            IntegrityError: it can't be understood.
        """
        path = folder / INFO_NAME
        if not path.is_file():
            raise AvaError(f"{path}: no such file: give the output folder of `ava preprocess --for {purpose}`")
        try:
            fields = parse_json(path.read_bytes())
            splits = {name: SplitCounts(**fields["splits"][name]) for name in SPLITS}
            made_for, max_tokens = str(fields["for"]), int(fields["max_tokens"])
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{path}: can't be read ({error}): run `ava preprocess` again") from error
        if made_for != purpose:
            raise AvaError(f"{path}: was made for {made_for}: give the output of `ava preprocess --for {purpose}`")
        return cls(folder, made_for, max_tokens, splits)

    @cached_property
    def special(self) -> SpecialIds:
        """What of the tokenizer a model is made for."""
        return special_ids(self.folder / "tokenizer")

    def read(self, split: str) -> list[EncodedConversation]:
        """The conversations of a split, in their order.

        Raises:
            IntegrityError: they can't be read, or aren't those that were counted.
        """
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for path in shard_files(self.folder / split):
            try:
                with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                    rows += reader.read_all().to_pylist()
            except (OSError, pa.ArrowException) as error:
                reason = first_line(error)
                raise IntegrityError(f"{path}: can't be read ({reason}): run `ava preprocess` again") from error
        found = [
            EncodedConversation(
                row["name"], np.asarray(row["tokens"], np.int64), np.asarray(row["learnt"], bool), row["num_bytes"]
            )
            for row in rows
        ]
        counts = self.splits[split]
        if (len(found), sum(map(len, found))) != (counts.conversations, counts.tokens):
            raise IntegrityError(
                f"{self.folder / split}: holds other conversations than {INFO_NAME} counts: run `ava preprocess` again"
            )
        return found
