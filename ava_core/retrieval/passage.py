"""A passage: the piece of a document that is found, shown and cited."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """Text with the place that it comes from.

    Attributes:
        text: as it is shown and placed into a prompt.
        document: the name of its document.
        start: first character of the text in the document.
        end: one past its last character.
        heading: of the part of the document that it is in; empty if there is none.
        source_digest: SHA-256 of what the document was read from, hexadecimal.
        label: who may see it; empty: everyone.
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
        """What is searched, by words and by meaning: the heading is part of it."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def digest(self) -> str:
        """SHA-256 of heading and text, hexadecimal: passages with the same one have the same vector."""
        return hashlib.sha256(f"{self.heading}\0{self.text}".encode("utf-8", "surrogatepass")).hexdigest()
