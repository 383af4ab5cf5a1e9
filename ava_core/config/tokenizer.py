"""The section `tokenizer`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ava_core.config.limits import MAX_TOKENIZER_ENTRIES
from ava_core.config.section import Positive, Section, Text


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the training split only, or a finished tokenizer."""

    source: Annotated[Text | None, Field(alias="from")] = None
    """A finished tokenizer instead of one that is learned: the folder of a tokenizer, a model or shards, a
    tokenizer.json, or models:/NAME@ALIAS; null: learn one. Relative paths count from the folder given with --data, else
    from the current one. The keys below are for learning and unused then."""
    vocab_size: Annotated[int, Field(ge=256 + 14, le=MAX_TOKENIZER_ENTRIES)] = 2048
    """Entries including the 256 bytes and the 14 special tokens (boundary, padding, four for chats, eight spare)."""
    min_frequency: Positive = 2
    """Pairs seen less often are not merged."""
