"""The section `retrieval`: what `ava index` makes an index of passages of, and how."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ava_core.config.data import SourceConfig
from ava_core.config.embedding import EmbeddingName, HttpEmbedding
from ava_core.config.section import AnyText, NonNegative, Section, Text

LONGEST_PASSAGE = 4096


class RetrievalSource(SourceConfig):
    """One source of documents, as in `data.sources`."""

    label: Text | None = None
    """Access label: only callers who have it find passages of this source. null: everybody does."""


class RetrievalConfig(Section):
    """From sources to an index of passages."""

    pipeline: bool = False
    """Whether the pipeline makes an index after training, which evaluate and register get."""
    sources: list[RetrievalSource] = []
    """Where the documents come from, in order; none: the training split of the shards."""
    document_separator: AnyText | None = None
    """Splits a text file into documents at this string; null: a file is one document."""
    passage_tokens: Annotated[int, Field(ge=8, le=LONGEST_PASSAGE)] = 128
    """Tokens of a passage, at most, by the shards' tokenizer."""
    overlap_tokens: NonNegative = 16
    """Tokens at the end of a passage that the next one under the same heading begins with, at most; whole sentences."""
    embedding: EmbeddingName = "minilm"
    """`minilm`: all-MiniLM-L6-v2, for English; `model`: the mean of the trained model's last hidden states; `http`: a
    server; `none`: lexical search alone."""
    model: Text | None = None
    """Model for embedding = model: its folder, or models:/NAME@ALIAS. The flag --model of `ava index` wins over it."""
    http: HttpEmbedding = HttpEmbedding()

    @model_validator(mode="after")
    def _overlaps_less_than_a_passage(self) -> Self:
        if self.overlap_tokens * 2 > self.passage_tokens:
            raise ValueError(
                f"overlap_tokens = {self.overlap_tokens}: is more than half of passage_tokens = {self.passage_tokens}"
            )
        return self
