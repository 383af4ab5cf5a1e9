"""The section `data`: from sources to shards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ava_core.config.section import AnyText, Fraction, NonNegative, Positive, Section, Text

SOURCE_KINDS = ("corpus", "path", "hub")
"""Keys that name a source, one of which each entry of `data.sources` has; `ava_core/data/sources/KEY.py` opens it."""


class LocatedSource(Section):
    """Where a source lies: exactly one of `corpus`, `path` or `hub`."""

    kinds: ClassVar[tuple[str, ...]] = SOURCE_KINDS
    """Keys of which each entry has one."""
    corpus: Literal["shakespeare"] | None = None
    """An embedded corpus, fetched by `make data` and read from the folder given with --data."""
    path: Text | None = None
    """A file, folder or glob; relative paths count from the folder given with --data, else from the current one."""
    hub: Text | None = None
    """Name of a data set on the Hugging Face Hub, read with `datasets`."""
    split: Text = "train"
    """Split to read, for hub."""
    revision: Text | None = None
    """Commit or tag to read, for hub; a moving branch makes results unrepeatable."""
    streaming: bool = False
    """Read a hub data set record by record instead of downloading it whole."""
    format: str = ""
    """How the files of `path` are read."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in self.kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"names {' and '.join(given) or 'no source'}: give exactly one of {', '.join(self.kinds)}")
        return self

    @property
    def kind(self) -> str:
        """Which of `kinds` is given."""
        return next(name for name in self.kinds if getattr(self, name) is not None)

    @property
    def location(self) -> str:
        """What is given under that key: a corpus's name, a path, or a data set's name."""
        return getattr(self, self.kind)

    @property
    def column(self) -> str:
        """The column that holds the text, where rows are documents."""
        return "text"


class SourceConfig(LocatedSource):
    """One source of documents: exactly one of `corpus`, `path` or `hub`."""

    format: Literal["text", "markdown", "jsonl", "parquet", "arrow"] = "text"
    """How the files of `path` are read."""
    text_field: Text = "text"
    """Column that holds the text, for jsonl, parquet, arrow and hub."""

    @property
    def column(self) -> str:
        return self.text_field


class CleaningConfig(Section):
    """Cleaning filters, in the order in which they run. Each is counted in the cleaning report."""

    normalize_unicode: bool = True
    """NFC, and line ends as a single newline."""
    strip_control_characters: bool = True
    """Remove control characters other than tab and newline."""
    render_markdown: bool = True
    """Turn Markdown sources into plain text: emphasis, heading marks and hard breaks go, words stay."""
    collapse_blank_lines: bool = True
    """At most one blank line in a row; no spaces at line ends."""
    min_characters: NonNegative = 32
    """Documents shorter than this are dropped."""
    min_letter_share: Fraction = 0.5
    """Documents with a smaller share of letters among the non-space characters are dropped."""
    max_line_repetition: Fraction = 0.6
    """Documents with a larger share of repeated non-empty lines are dropped."""


class DeduplicationConfig(Section):
    """Removal of repeated documents."""

    exact: bool = True
    """Drop documents whose cleaned text is byte-identical to an earlier one."""
    near: bool = True
    """Drop documents whose MinHash estimate of Jaccard similarity to an earlier one passes `threshold`."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Jaccard similarity of word shingles from which two documents count as near duplicates."""
    num_permutations: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Hash functions of a MinHash signature."""
    shingle_words: Annotated[int, Field(gt=0, le=10_000)] = 5
    """Words in one shingle."""


class SplitConfig(Section):
    """Division into train, validation and test."""

    by: Literal["document", "position"] = "document"
    """`document`: by salted hash of the content; `position`: contiguous parts of one long text."""
    train: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.90
    """Share of bytes for training."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of bytes for validation; what remains is the test split."""
    salt: str = "ava"
    """Mixed into the hash: another salt, another split."""

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> SplitConfig:
        if self.train + self.validation >= 1.0:
            raise ValueError(
                f"train = {self.train:g}: train + validation must be < 1, to leave bytes for the test split"
            )
        return self


class DataConfig(Section):
    """From sources to shards."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)] = [SourceConfig(corpus="shakespeare")]
    """Where the documents come from, in order."""
    document_separator: AnyText | None = None
    """Splits a text file into documents at this string; null: a file is one document."""
    cleaning: CleaningConfig = CleaningConfig()
    deduplication: DeduplicationConfig = DeduplicationConfig()
    split: SplitConfig = SplitConfig()
    shard_tokens: Positive = 4_194_304
    """Tokens in one shard file, at most."""
