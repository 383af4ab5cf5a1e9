"""From sources to shards of prompts: the library function behind `ava preprocess --for prompts`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ava_core.alignment.conversation import Conversation, Message
from ava_core.alignment.gathering import Gathered, divide_among_splits, drawn, gather
from ava_core.alignment.making import Prepared, ShardsInMaking
from ava_core.alignment.shapes import PROMPT_SHAPES
from ava_core.alignment.tokens import EncodedConversation, encode_prompt
from ava_core.config.prompts import PromptsConfig
from ava_core.errors import AvaError

if TYPE_CHECKING:
    from ava_core.progress import Progress

DRAW_SEED = 0
"""Which prompts are drawn is up to the sources alone, so that trainings of several seeds are asked the same."""


def prepare_prompts(
    config: PromptsConfig,
    *,
    shards: Path,
    data: Path | None,
    output: Path,
    state: Path,
    progress: Progress,
) -> Prepared:
    """As `prepare.prepare`, with the last answers left off: they stand in `train.jsonl`, `validation.jsonl` and
    `test.jsonl`, beside the prompts' messages, for `held_out.read_prompts`.

    Args:
        config: the section `prompts`.
        shards, data, output, state, progress: as in `prepare`.

    Raises:
        as `prepare`, and AvaError: no reference has enough lines.
    """
    work = ShardsInMaking(config, "prompts", shards, output, state, progress)
    gathered = gather(config, data, work.tokenizer, config.max_tokens, PROMPT_SHAPES, answered=False)
    chosen, note = _chosen(gathered, config.min_reference_lines)
    for name, all_of_it in divide_among_splits(_once(chosen, gathered), config, shards).items():
        given = drawn(all_of_it, name, config.max_prompts, DRAW_SEED)
        work.write(name, given, partial(_one, given))
    return work.finish(gathered, note)


def _chosen(gathered: Gathered, fewest: int) -> tuple[list[Conversation], str]:
    """Those whose reference has at least so many lines, blank ones not counted; and what is to be said of the others.

    Raises:
        AvaError: there is none.
    """
    if not fewest:
        return gathered.conversations, ""
    chosen = [item for item in gathered.conversations if _reference_lines(item) >= fewest]
    if not chosen:
        raise AvaError(f"prompts.min_reference_lines = {fewest}: no reference has so many lines: lower it")
    others = len(gathered.conversations) - len(chosen)
    return chosen, f"{others:,} not chosen: their reference has fewer lines than min_reference_lines = {fewest}."


def _reference_lines(item: Conversation) -> int:
    return sum(bool(line.strip()) for line in item.answer.splitlines()) if item.is_answered else 0


def _once(conversations: Sequence[Conversation], gathered: Gathered) -> list[Conversation]:
    """The first one of each prompt; the others count as repeated."""
    first: dict[tuple[Message, ...], Conversation] = {}
    for item in conversations:
        first.setdefault(item.prompt, item)
    gathered.duplicates += len(conversations) - len(first)
    return list(first.values())


def _one(given: Sequence[Conversation], tokenizer: Any, number: int) -> tuple[EncodedConversation, ...]:
    tokens = np.asarray(encode_prompt(tokenizer, given[number].prompt), np.int64)
    return (EncodedConversation(given[number].name, tokens, np.zeros(len(tokens), bool), 0),)
