"""Cleaning filters, each counted: documents and bytes in and out, reasons, samples.

A filter either changes a document's text or drops the document. `Cleaner` runs them in the order of `CleaningConfig`
and keeps the counts that end up in cleaning.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ava_core.config.data import CleaningConfig
from ava_core.data.markdown import render_markdown
from ava_core.data.sources.source import Document

MAX_SAMPLES = 3
"""Samples kept of each filter."""
EXCERPT = 120
"""Characters of one sample, at most."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufff9-\ufffb\ufffe\uffff]")
"""C0 but tab and newline, delete, C1, and characters without width that break words invisibly."""


@dataclass(frozen=True)
class Outcome:
    """A filter's result for one document.

    Attributes:
        text: what the next filter gets.
        reasons: how often each reason to change or to drop applied; empty: the text is unchanged.
        dropped: whether the document is dropped.
    """

    text: str
    reasons: dict[str, int] = field(default_factory=dict)
    dropped: bool = False


Filter = Callable[[Document], Outcome]


def normalize_unicode(document: Document) -> Outcome:
    """NFC, and line ends as a single newline."""
    text = document.text
    reasons: dict[str, int] = {}
    if "\r" in text or "\u2028" in text or "\u2029" in text:
        text, reasons["line_end"] = re.subn(r"\r\n?|[\u2028\u2029]", "\n", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        reasons["not_nfc"] = 1
    return Outcome(text, reasons)


def strip_control_characters(document: Document) -> Outcome:
    """Remove control characters other than tab and newline."""
    text, count = CONTROL.subn("", document.text)
    return Outcome(text, {"control_character": count} if count else {})


def render(document: Document) -> Outcome:
    """Turn Markdown into plain text; other documents pass."""
    if not document.markdown:
        return Outcome(document.text)
    text, marks = render_markdown(document.text)
    return Outcome(text, {name: count for name, count in sorted(marks.items()) if count})


def collapse_blank_lines(document: Document) -> Outcome:
    """At most one blank line in a row, none at the ends; no spaces at line ends; one newline at the end."""
    lines = document.text.split("\n")
    stripped = [line.rstrip() for line in lines]
    trailing = sum(line != before for line, before in zip(stripped, lines, strict=True))
    text, blank = re.subn(r"\n{3,}", "\n\n", "\n".join(stripped))
    text = text.strip("\n")
    text = text + "\n" if text else ""
    counts = {"trailing_space": trailing, "blank_lines": blank}
    reasons = {name: count for name, count in counts.items() if count}
    return Outcome(text, reasons or ({"document_ends": 1} if text != document.text else {}))


@dataclass(frozen=True)
class MinCharacters:
    """Drop documents shorter than `limit` characters."""

    limit: int

    def __call__(self, document: Document) -> Outcome:
        count = len(document.text.strip())
        if count >= self.limit:
            return Outcome(document.text)
        return Outcome(
            document.text, {"empty" if not count else f"shorter than {self.limit} characters": 1}, dropped=True
        )


@dataclass(frozen=True)
class MinLetterShare:
    """Drop documents with a share of letters, among the characters that aren't space, below `limit`."""

    limit: float

    def __call__(self, document: Document) -> Outcome:
        text = document.text
        solid = len(text) - sum(map(str.isspace, text))
        # Combining marks belong to the letters of many scripts.
        letters = sum(map(str.isalpha, text)) + (0 if text.isascii() else sum(map(_is_mark, text)))
        if solid and letters >= self.limit * solid:
            return Outcome(text)
        return Outcome(text, {f"letters below a share of {self.limit:g}": 1}, dropped=True)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


@dataclass(frozen=True)
class MaxLineRepetition:
    """Drop documents in which more than a share `limit` of the non-empty lines repeats an earlier one."""

    limit: float

    def __call__(self, document: Document) -> Outcome:
        lines = [line.strip() for line in document.text.split("\n") if line.strip()]
        repeated = len(lines) - len(set(lines))
        if not lines or repeated <= self.limit * len(lines):
            return Outcome(document.text)
        return Outcome(document.text, {f"repeated lines above a share of {self.limit:g}": 1}, dropped=True)


def filters(config: CleaningConfig) -> list[tuple[str, Filter]]:
    """The filters that the configuration asks for, by their key there, in the order in which they run."""
    switches: list[tuple[str, Filter]] = [
        ("normalize_unicode", normalize_unicode),
        ("strip_control_characters", strip_control_characters),
        ("render_markdown", render),
        ("collapse_blank_lines", collapse_blank_lines),
    ]
    chosen = [(name, function) for name, function in switches if getattr(config, name)]
    # A document without text can't be tokenised, so this one is never off.
    chosen.append(("min_characters", MinCharacters(max(config.min_characters, 1))))
    if config.min_letter_share > 0:
        chosen.append(("min_letter_share", MinLetterShare(config.min_letter_share)))
    if config.max_line_repetition < 1:
        chosen.append(("max_line_repetition", MaxLineRepetition(config.max_line_repetition)))
    return chosen


@dataclass
class Count:
    """What one filter has done so far, as cleaning.json counts it."""

    name: str
    documents_in: int = 0
    documents_out: int = 0
    documents_changed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)

    def add(self, document: Document, size: int, outcome: Outcome) -> int:
        """Count one document of `size` bytes; returns the bytes that the next filter gets."""
        self.documents_in += 1
        self.bytes_in += size
        self.reasons.update(outcome.reasons)
        if (outcome.dropped or outcome.text != document.text) and len(self.samples) < MAX_SAMPLES:
            self.samples.append(_sample(document, outcome))
        if outcome.dropped:
            return 0
        if outcome.text != document.text:
            self.documents_changed += 1
            size = len(outcome.text.encode())
        self.documents_out += 1
        self.bytes_out += size
        return size

    def report(self) -> dict[str, Any]:
        """As it stands in cleaning.json."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"reasons": dict(sorted(self.reasons.items()))}


def _sample(document: Document, outcome: Outcome) -> dict[str, str]:
    """A text around its first difference, before and after; the beginning of a dropped one."""
    if outcome.dropped:
        return {"document": document.name, "dropped": document.text[:EXCERPT]}
    before, after = document.text, outcome.text
    pairs = zip(before, after, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    start = before.rfind("\n", 0, same) + 1 if same else 0
    return {
        "document": document.name,
        "before": before[start : start + EXCERPT],
        "after": after[start : start + EXCERPT],
    }


class Cleaner:
    """Runs all filters over documents, one at a time, and counts.

    Args:
        config: the section `data.cleaning`.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._filters = filters(config)
        self._counts = [Count(name) for name, _ in self._filters]
        self.documents_in = self.bytes_in = self.documents_out = self.bytes_out = 0

    def clean(self, document: Document) -> Document | None:
        """The document after all filters, or None if one dropped it."""
        # A lone surrogate (JSON can hold one) is no text: UTF-8 can't store it.
        text = document.text.encode("utf-8", "replace").decode() if _has_surrogate(document.text) else document.text
        size = len(text.encode())
        self.documents_in += 1
        self.bytes_in += size
        for (_, apply), count in zip(self._filters, self._counts, strict=True):
            current = Document(document.name, text, document.markdown)
            outcome = apply(current)
            size = count.add(current, size, outcome)
            if outcome.dropped:
                return None
            text = outcome.text
        self.documents_out += 1
        self.bytes_out += size
        return Document(document.name, text)

    def report(self) -> dict[str, Any]:
        """The counts of all filters, as they stand in cleaning.json."""
        return {
            "documents_in": self.documents_in,
            "bytes_in": self.bytes_in,
            "documents_out": self.documents_out,
            "bytes_out": self.bytes_out,
            "filters": [count.report() for count in self._counts],
        }


def merge_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report over documents that several cleaners got, in the order in which one would have got them."""
    merged = {name: sum(report[name] for report in reports) for name in reports[0] if name != "filters"}
    filters = zip(*(report["filters"] for report in reports), strict=True)
    return merged | {"filters": [_merge_counts(counts) for counts in filters]}


def _merge_counts(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total = Count(counts[0]["name"])
    for count in counts:
        for name in ("documents_in", "documents_out", "documents_changed", "bytes_in", "bytes_out"):
            setattr(total, name, getattr(total, name) + count[name])
        total.reasons.update(count["reasons"])
        total.samples = (total.samples + count["samples"])[:MAX_SAMPLES]
    return total.report()


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
