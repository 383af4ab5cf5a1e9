"""A passage: what is embedded, found and cited."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document.

    Attributes:
        text: the document's characters from `start` to `end`.
        document: name of the document.
        start: of its first character in the document.
        end: behind its last one.
        heading: the headings above it, outermost first, with ` > ` between them; empty: none.
        source_digest: SHA-256 of the document's text.
        label: access label that a caller must have; empty: none.
    """

    text: str
    document: str
    start: int
    end: int
    heading: str = ""
    source_digest: str = ""
    label: str = ""

    @property
    def searched(self) -> str:
        """What is embedded and searched: the headings, then the text."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def digest(self) -> str:
        """SHA-256 of `searched`: equal ones have equal vectors."""
        return hashlib.sha256(self.searched.encode("utf-8", "surrogatepass")).hexdigest()
