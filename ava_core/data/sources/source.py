"""What a source gives: documents, the bytes that they are read from, and a digest of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ava_core.errors import AvaError


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: where it came from, relative to its source: the same on every machine.
        text: the text.
        markdown: whether `text` is Markdown.
    """

    name: str
    text: str
    markdown: bool = False


class Source(Protocol):
    """An entry of `data.sources`, found but not yet read."""

    @property
    def name(self) -> str:
        """How the data set card names it; the same on every machine."""
        ...

    @property
    def license(self) -> str | None:
        """What allows its use, if that is known."""
        ...

    @property
    def language(self) -> str | None:
        """ISO 639-1 code, if that is known."""
        ...

    @property
    def size(self) -> int:
        """Bytes to read, to show progress; 0 where that isn't known before."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents, in an order that is always the same."""
        ...

    def split_by_file(self) -> list[Source]:
        """The same documents in the same order, as sources of one file each; the source itself if it can't be split."""
        ...

    def digest(self) -> str:
        """SHA-256 over what the documents are read from; enters the key of the step."""
        ...


def document_of_row(value: Any, name: str, text_field: str) -> Document:
    """The document in one row's text column; a missing text is an empty document, which cleaning counts and drops.

    Raises:
        AvaError: the value is no text.
    """
    if value is None:
        return Document(name, "")
    if not isinstance(value, str):
        raise AvaError(
            f"{name}: `{text_field}` is {type(value).__name__}, not text: set text_field to the column that holds text"
        )
    return Document(name, value)


def missing_field(name: str, text_field: str, present: Iterable[str]) -> AvaError:
    """The error for data without the text column."""
    columns = ", ".join(sorted(present)) or "none"
    return AvaError(f"{name}: has no field `{text_field}`: set text_field to one of its fields ({columns})")
