"""Shards of conversations while they are made: the folder, and the parts of it that a killed run has left."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.alignment.card import render_card
from ava_core.alignment.conversation import Conversation, RowFault
from ava_core.alignment.gathering import Gathered
from ava_core.alignment.held_out import KEPT, file_of, write_held_out
from ava_core.alignment.shards import MADE_OF, SplitCounts, write_info, write_split
from ava_core.alignment.template import give_template
from ava_core.alignment.tokens import EncodedConversation
from ava_core.config.conversations import ConversationsConfig
from ava_core.data.durable import SECONDS, DurableFolders
from ava_core.data.tokenizer import load_tokenizer, special_ids
from ava_core.files import write_json, write_json_lines

if TYPE_CHECKING:
    from ava_core.progress import Progress

log = logging.getLogger(__name__)
LEFT_OUT, ABOUT, MESSAGES = "left_out.jsonl", "about.json", "messages.jsonl"
Encode = Callable[[Any, int], tuple[EncodedConversation, ...]]
"""The rows of one of a split's conversations, by its position; raises RowFault."""


@dataclass(frozen=True)
class Prepared:
    """The figures of a finished run: those that are always the same, and those of a clock."""

    metrics: dict[str, float]
    timings: dict[str, float]


class ShardsInMaking:
    """An output folder that gets its splits one after the other.

    Args:
        config: what the shards are made of.
        purpose: and for.
        shards: output of `ava preprocess`, whose tokenizer they get, with a template for chats.
        output: an empty folder.
        state: survives a killed run with the same inputs and configuration.
        progress: shows progress.

    Raises:
        ConfigError: the tokenizer has no chat template, and can't get one.
    """

    def __init__(
        self, config: ConversationsConfig, purpose: str, shards: Path, output: Path, state: Path, progress: Progress
    ) -> None:
        self.config, self.purpose, self.output, self.progress = config, purpose, output, progress
        self.started = time.monotonic()
        self.durable = DurableFolders(state)
        self.tokenizer = self.durable.get("tokenizer", partial(_copy_tokenizer, shards))
        self.splits: dict[str, _Split] = {}

    def texts(self, name: str, make: Callable[[], list[str]]) -> list[str]:
        """Texts that take long to make, which are kept under this name."""
        folder = self.durable.get(name, lambda partial: write_json(partial / ABOUT, {"texts": make()}))
        return list(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["texts"])

    def write(self, name: str, given: Sequence[Conversation], encode: Encode) -> None:
        """The rows of a split."""
        make = partial(
            _write_split, name, given, encode, self.config.max_tokens, self.purpose, self.tokenizer, self.progress
        )
        self.splits[name] = _Split.read(self.durable.get(f"split-{name}", make))
        shutil.copytree(self.splits[name].rows, self.output / name)
        if name in KEPT[self.purpose]:
            shutil.copyfile(self.splits[name].rows.parent / MESSAGES, self.output / file_of(name))

    def finish(self, gathered: Gathered, note: str = "") -> Prepared:
        """What belongs beside the splits, and the figures; `note` is a sentence that the card gets."""
        output, splits = self.output, self.splits
        shutil.copytree(self.tokenizer, output / "tokenizer", ignore=shutil.ignore_patterns(SECONDS))
        counts = {name: split.counts for name, split in splits.items()}
        write_info(output, self.purpose, self.config.max_tokens, counts)
        left_out = [*gathered.faults, *(fault for split in splits.values() for fault in split.left_out)]
        write_json_lines(output / LEFT_OUT, [{"name": name, "reason": reason} for name, reason in left_out])
        if left_out:
            log.warning("preprocess: %d rows or conversations left out: see %s", len(left_out), LEFT_OUT)
        samples = {name: split.sample for name, split in splits.items()}
        card = render_card(self.config, self.purpose, counts, samples, left_out, gathered.duplicates, note)
        (output / "README.md").write_text(card)
        metrics: dict[str, float] = {
            f"{name}_{key}": value
            for name, split in counts.items()
            for key, value in split.figures(self.purpose).items()
        }
        metrics |= {"left_out": len(left_out), "duplicates_removed": gathered.duplicates}
        return Prepared(metrics, {"wall_seconds": time.monotonic() - self.started})


@dataclass(frozen=True)
class _Split:
    """What is kept of a finished split, so that a killed step has it.

    Attributes:
        rows: folder of its shards.
        counts: of them.
        left_out: name of each conversation that isn't in them, and why.
        sample: the first one as the model reads it.
    """

    rows: Path
    counts: SplitCounts
    left_out: list[tuple[str, str]]
    sample: str

    @classmethod
    def read(cls, folder: Path) -> _Split:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        left_out = [(name, reason) for name, reason in about["left_out"]]
        return cls(folder / "rows", SplitCounts(**about["counts"]), left_out, about["sample"])


def _write_split(
    name: str,
    given: Sequence[Conversation],
    encode: Encode,
    max_tokens: int,
    purpose: str,
    tokenizer: Path,
    progress: Progress,
    folder: Path,
) -> None:
    loaded: Any = load_tokenizer(tokenizer)
    encoded: list[EncodedConversation] = []
    kept: list[Conversation] = []
    left_out: list[tuple[str, str]] = []
    rows = 1
    with progress.task(f"tokenize {name}", len(given)) as advance:
        for number, conversation in enumerate(given):
            advance(number + 1)
            try:
                items = encode(loaded, number)
                if (length := sum(map(len, items))) > max_tokens:
                    raise RowFault(f"has {length} tokens, more than {MADE_OF[purpose]}.max_tokens = {max_tokens}")
            except RowFault as fault:
                left_out.append((conversation.name, str(fault)))
            else:
                rows = len(items)
                encoded += items
                kept.append(conversation)
    write_held_out(folder / MESSAGES, kept, purpose)
    counts = write_split(name, folder / "rows", encoded, special_ids(tokenizer).vocab_size)
    sample = "\n\n".join(loaded.decode(item.tokens) for item in encoded[:rows])
    write_json(folder / ABOUT, {"counts": asdict(counts), "left_out": left_out, "sample": sample})


def _copy_tokenizer(shards: Path, folder: Path) -> None:
    shutil.copytree(shards / "tokenizer", folder, dirs_exist_ok=True)
    give_template(folder)
