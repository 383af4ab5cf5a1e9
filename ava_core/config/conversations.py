"""The section `conversations`: what `ava preprocess --for sft` makes shards of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.data import LocatedSource, SplitConfig
from ava_core.config.section import LARGEST, Section, Text

ShapeName = Literal["auto", "messages", "sharegpt", "alpaca", "completion"]
"""How a row holds a conversation; each is read in `ava_core.alignment.shapes`."""


class ConversationSource(LocatedSource):
    """One source of conversations: exactly one of `corpus`, `path` or `hub`."""

    format: Literal["jsonl", "parquet", "arrow"] = "jsonl"
    """How the files of `path` are read."""
    shape: ShapeName = "auto"
    """`messages`: a list of `{role, content}`; `sharegpt`: `conversations`, a list of `{from, value}`; `alpaca`:
    `instruction`, `input`, `output`; `completion`: `prompt` and `completion`. auto: by the fields of the first row."""


class ConversationsConfig(Section):
    """From sources to shards of conversations."""

    sources: Annotated[list[ConversationSource], Field(min_length=1)] = [ConversationSource(corpus="shakespeare")]
    """Where the conversations come from, in order. The corpus gives the dialogues of its plays."""
    system: Text | None = None
    """What the system says in conversations that don't begin with its message; null: they have none."""
    max_tokens: Annotated[int, Field(ge=8, le=LARGEST)] = 256
    """Longest conversation in tokens, with those of its template. Longer ones of a corpus are divided between two
    turns; of other sources they are left out, counted and named."""
    faulty: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of rows that hold no conversation, such as an empty answer: an end with one line for each, or they
    are left out, counted and named."""
    split: SplitConfig = SplitConfig()
    """Of sources that aren't the text of the shards; what is, stays in the split that it is in there."""
