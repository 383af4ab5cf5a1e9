"""From sources to shards of conversations: the library function behind `ava preprocess --for sft`."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.alignment.card import render_card
from ava_core.alignment.conversation import Conversation, Message, RowFault, checked
from ava_core.alignment.plays import dialogues
from ava_core.alignment.shapes import SHAPES, read_row, shape_of
from ava_core.alignment.shards import SplitCounts, write_info, write_split
from ava_core.alignment.template import give_template
from ava_core.alignment.tokens import EncodedConversation, divide, encode_conversation
from ava_core.config.conversations import ConversationsConfig, ConversationSource
from ava_core.data.durable import SECONDS, DurableFolders
from ava_core.data.shards import SPLITS, document_names
from ava_core.data.sources import open_each
from ava_core.data.splitting import split_documents
from ava_core.data.tokenizer import encode, load_tokenizer, read_tokenizer, special_ids
from ava_core.errors import AvaError
from ava_core.files import write_json

if TYPE_CHECKING:
    from ava_core.progress import Progress

log = logging.getLogger(__name__)
LEFT_OUT, ABOUT = "left_out.jsonl", "about.json"
MAX_FAULTS = 20
"""Faulty rows named in one refusal."""
TEMPLATE_TOKENS = 4
"""What a template writes around a message, about, to divide dialogues by; what is too long after all is left out."""


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


@dataclass(frozen=True)
class Prepared:
    """The figures of a finished run: those that are always the same, and those of a clock."""

    metrics: dict[str, float]
    timings: dict[str, float]


def prepare(
    config: ConversationsConfig,
    *,
    purpose: str,
    shards: Path,
    data: Path | None,
    output: Path,
    state: Path,
    progress: Progress,
) -> Prepared:
    """Find conversations, divide them into splits, and write them as tokens with what is learnt of them.

    Conversations of a document that the text of `shards` holds are in the split that it is in there, so that nothing
    that a model is measured by was learnt before, in pretraining or here.

    Args:
        config: the section `conversations`.
        purpose: `sft`.
        shards: output of `ava preprocess`, whose tokenizer the model has.
        data: the folder given with --data; may be None if no source needs it.
        output: an empty folder: gets `train/ validation/ test/ conversations.json dataset_dict.json tokenizer/
            README.md left_out.jsonl`.
        state: survives a killed run with the same inputs and configuration.
        progress: shows progress.

    Raises:
        AvaError: a source can't be read, a row holds no conversation (up to 20 are named), or too few are left.
        ConfigError: the tokenizer has no chat template, and can't get one.
    """
    started = time.monotonic()
    durable = DurableFolders(state)
    tokenizer = durable.get("tokenizer", partial(_copy_tokenizer, shards))
    gathered = _gather(config, data, tokenizer)
    conversations = _divide_among_splits(gathered.conversations, config, shards)
    splits: dict[str, _Split] = {}
    for name in SPLITS:
        make = partial(_write_split, name, conversations[name], config.max_tokens, tokenizer, progress)
        splits[name] = _Split.read(durable.get(f"split-{name}", make))
        shutil.copytree(splits[name].rows, output / name)
    shutil.copytree(tokenizer, output / "tokenizer", ignore=shutil.ignore_patterns(SECONDS))
    counts = {name: split.counts for name, split in splits.items()}
    write_info(output, purpose, config.max_tokens, counts)
    left_out = [*gathered.faults, *(fault for split in splits.values() for fault in split.left_out)]
    _write_lines(output / LEFT_OUT, [{"name": name, "reason": reason} for name, reason in left_out])
    if left_out:
        log.warning("preprocess: %d rows or conversations left out: see %s", len(left_out), LEFT_OUT)
    samples = {name: split.sample for name, split in splits.items()}
    (output / "README.md").write_text(render_card(config, counts, samples, left_out, gathered.duplicates))
    metrics = {f"{name}_{key}": value for name, split in counts.items() for key, value in vars(split).items()}
    metrics |= {"left_out": len(left_out), "duplicates_removed": gathered.duplicates}
    return Prepared(metrics, {"wall_seconds": time.monotonic() - started})


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


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
    name: str, given: Sequence[Conversation], max_tokens: int, tokenizer: Path, progress: Progress, folder: Path
) -> None:
    loaded: Any = load_tokenizer(tokenizer)
    encoded: list[EncodedConversation] = []
    left_out: list[tuple[str, str]] = []
    with progress.task(f"tokenize {name}", len(given)) as advance:
        for done, conversation in enumerate(given, start=1):
            advance(done)
            try:
                item = encode_conversation(loaded, conversation)
                if len(item) > max_tokens:
                    raise RowFault(f"has {len(item)} tokens, more than conversations.max_tokens = {max_tokens}")
            except RowFault as fault:
                left_out.append((conversation.name, str(fault)))
            else:
                encoded.append(item)
    counts = write_split(name, folder / "rows", encoded, special_ids(tokenizer).vocab_size)
    sample = loaded.decode(encoded[0].tokens)
    write_json(folder / ABOUT, {"counts": asdict(counts), "left_out": left_out, "sample": sample})


def _copy_tokenizer(shards: Path, folder: Path) -> None:
    shutil.copytree(shards / "tokenizer", folder, dirs_exist_ok=True)
    give_template(folder)


def _gather(config: ConversationsConfig, data: Path | None, tokenizer: Path) -> Gathered:
    found, seen = Gathered(), set[tuple[Message, ...]]()
    opened = open_each(config.sources, None, data)
    for entry, source in zip(config.sources, opened, strict=True):
        read = _of_plays(source, config, tokenizer) if entry.corpus else _of_rows(entry, source, found.faults)
        for conversation in read:
            conversation = _with_system(conversation, config.system)
            if conversation.messages in seen:
                found.duplicates += 1
                continue
            seen.add(conversation.messages)
            found.conversations.append(conversation)
    if found.faults and config.faulty == "refuse":
        named = [f"{name}: {reason}" for name, reason in found.faults[:MAX_FAULTS]]
        if len(found.faults) > MAX_FAULTS:
            named.append(
                f"and {len(found.faults) - MAX_FAULTS} more rows: mend them, or conversations.faulty: leave_out"
            )
        raise AvaError(*named)
    if not found.conversations:
        raise AvaError("conversations.sources: hold no conversation: give others")
    return found


def _of_plays(source: Any, config: ConversationsConfig, folder: Path) -> Iterator[Conversation]:
    tokenizer = read_tokenizer(folder)
    for document in source.documents():
        for conversation in dialogues(document.text, document.name):
            lengths = [len(tokens) for tokens in encode(tokenizer, (m.content for m in conversation.messages))]
            yield from divide(conversation, [length + TEMPLATE_TOKENS for length in lengths], config.max_tokens)


def _of_rows(entry: ConversationSource, source: Any, faults: list[tuple[str, str]]) -> Iterator[Conversation]:
    shape: str | None = None if entry.shape == "auto" else entry.shape
    for row in source.rows():
        if shape is None:
            present = [name for name, value in row.values.items() if value is not None]
            shape = shape_of(present)
            if shape is None:
                known = "; ".join(f"{name}: {', '.join(kind.fields)}" for name, kind in SHAPES.items())
                raise AvaError(
                    f"{row.name}: has the fields {', '.join(sorted(present)) or 'none'}, of no shape that is known"
                    f" ({known}): rename them, or set the source's shape"
                )
            log.info("preprocess: %s: rows are of the shape %s", source.name, shape)
        try:
            yield checked(row.name, read_row(row.values, shape))
        except RowFault as fault:
            faults.append((row.name, str(fault)))


def _with_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or conversation.messages[0].role == "system":
        return conversation
    return replace(conversation, messages=(Message("system", system), *conversation.messages))


def _divide_among_splits(
    conversations: Iterable[Conversation], config: ConversationsConfig, shards: Path
) -> dict[str, list[Conversation]]:
    """Conversations by split: with their document, or by a salted hash of what they say."""
    split_of = {name: split for split in SPLITS for name in document_names(shards, split)}
    splits: dict[str, list[Conversation]] = {name: [] for name in SPLITS}
    others: list[Conversation] = []
    for conversation in conversations:
        if conversation.document in split_of:
            splits[split_of[conversation.document]].append(conversation)
        else:
            others.append(conversation)
    if others:
        texts = ["\n".join(f"{m.role}: {m.content}" for m in item.messages) for item in others]
        for name, pieces in split_documents(texts, config.split).items():
            splits[name] += [others[piece.document] for piece in pieces]
    return splits
