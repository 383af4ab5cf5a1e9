"""The section `conversations`: what `ava preprocess --for sft` makes shards of."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from ava_core.config.data import SOURCE_KINDS, LocatedSource, SplitConfig
from ava_core.config.section import LARGEST, Positive, Section, Text

ShapeName = Literal["auto", "messages", "sharegpt", "alpaca", "completion"]
"""How a row holds a conversation; each is read in `ava_core.alignment.shapes`."""


class ConversationSource(LocatedSource):
    """One source of conversations: exactly one of `corpus`, `path`, `hub` or `gym`."""

    kinds: ClassVar[tuple[str, ...]] = (*SOURCE_KINDS, "gym")
    gym: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """A task of the package reasoning-gym, such as chain_sum, that makes questions with answers."""
    count: Positive = 1_000
    """Items that the task makes, for gym; equal questions count once."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the first item, for gym; the next ones have the numbers that follow."""
    settings: dict[str, JsonValue] = {}
    """Fields of the task's configuration, for gym, such as `{max_terms: 3}`."""
    format: Literal["jsonl", "parquet", "arrow"] = "jsonl"
    """How the files of `path` are read."""
    shape: ShapeName = "auto"
    """`messages`: a list of `{role, content}`; `sharegpt`: `conversations`, a list of `{from, value}`; `alpaca`:
    `instruction`, `input`, `output`; `completion`: `prompt` and `completion`. auto: by the fields of the first row."""

    @model_validator(mode="after")
    def _sets_what_it_has(self) -> Self:
        for name in ("count", "seed", "settings") if self.gym is None else ():
            if getattr(self, name) != ConversationSource.model_fields[name].default:
                raise ValueError(f"{name}: is of sources `gym`: leave it out")
        return self


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

    @field_validator("sources")
    @classmethod
    def _no_item_twice(cls, sources: list[ConversationSource]) -> list[ConversationSource]:
        """Items of one task with one seed are the same, or alike if its settings differ."""
        made = sorted((source.gym, source.seed, source.count) for source in sources if source.gym is not None)
        for (task, seed, count), (other, start, more) in pairwise(made):
            if task == other and start < seed + count:
                raise ValueError(
                    f"gym {task}: the seeds {seed} to {seed + count - 1} and {start} to {start + more - 1} overlap, and"
                    f" an item is made from its seed: set the seed of one of them to {seed + count} or more"
                )
        return sources

    @field_validator("split")
    @classmethod
    def _divides_between_conversations(cls, split: SplitConfig) -> SplitConfig:
        if split.by == "position":
            raise ValueError("by = position: would put a conversation into two splits: must be document")
        return split
