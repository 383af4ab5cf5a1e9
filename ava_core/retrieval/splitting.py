"""From documents to passages: by headings, then paragraphs, then sentences, as long as a number of tokens allows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ava_core.data.sources.source import Document
from ava_core.retrieval.passage import Passage

MARKDOWN_HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*?)[ \t]*#*[ \t]*\Z")
NUMBERED_HEADING = re.compile(
    r"(?:(PART|BOOK|VOLUME|Part|Book|Volume)|(ACT|CHAPTER|Act|Chapter)|(SCENE|SECTION|Scene|Section))"
    r"[ \t]+([IVXLCDM]+|[0-9]+)\b[^\n]{0,120}\Z"
)
"""Of plain text: a line of its own that counts parts, acts, scenes, chapters or sections."""
PARAGRAPH = re.compile(r"(?:[^\n]|\n(?![ \t]*\n))+")
SENTENCE = re.compile(r".+?(?:[.!?]+[\"')\]\u201d\u2019]*(?=\s)|\n|\Z)", re.DOTALL)
WORD = re.compile(r"\S+\s*")
CountTokens = Callable[[Sequence[str]], list[int]]
"""Tokens of each text."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Characters of a document that stay together, and about how many tokens they are."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int
    title: str


def split(document: Document, count_tokens: CountTokens, size: int, overlap: int, label: str = "") -> Iterator[Passage]:
    """The passages of a document, in their order.

    No passage reaches over a heading. Paragraphs stay whole where they fit, then sentences, then words.

    Args:
        document: its text; headings of Markdown are those with `#`.
        count_tokens: of the model that will read them.
        size: tokens of a passage, at most, but for a single word that has more.
        overlap: tokens, at most, of the sentences that are repeated at the beginning of the next passage.
        label: access label of the document.
    """
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
    for heading, spans in _sections(document):
        pieces = _pieces(document.text, spans, count_tokens, size)
        for run in _pack(pieces, size, overlap):
            start, end = run[0].start, run[-1].end
            text = document.text[start:end].rstrip()
            yield Passage(text, document.name, start, start + len(text), heading, digest, label)


def _sections(document: Document) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The headings above, and the paragraphs below them."""
    above: list[_Heading] = []
    spans: list[tuple[int, int]] = []
    for found in PARAGRAPH.finditer(document.text):
        start, end = found.span()
        paragraph = found[0].strip()
        if not paragraph:
            continue
        first, _, rest = paragraph.partition("\n")
        heading = _heading(first.rstrip(), document.markdown)
        if heading is not None and (document.markdown or not rest):
            if spans:
                yield _joined(above), spans
            above = [*(one for one in above if one.level < heading.level), heading]
            spans = []
            if not rest:
                continue
            start += found[0].index("\n", found[0].index(first)) + 1
        start += len(document.text[start:end]) - len(document.text[start:end].lstrip())
        spans.append((start, start + len(document.text[start:end].rstrip())))
    if spans:
        yield _joined(above), spans


def _joined(headings: Sequence[_Heading]) -> str:
    return " > ".join(heading.title for heading in headings)


def _heading(line: str, markdown: bool) -> _Heading | None:
    if markdown:
        found = MARKDOWN_HEADING.match(line)
        return _Heading(len(found[1]), found[2]) if found else None
    numbered = NUMBERED_HEADING.match(line)
    if numbered is None:
        return None
    return _Heading(next(level for level in (1, 2, 3) if numbered[level]), line)


def _pieces(text: str, spans: Sequence[tuple[int, int]], count_tokens: CountTokens, size: int) -> list[_Piece]:
    """Paragraphs, of which those that are too long are cut, each with what stands before the next one."""
    pieces = []
    counts = count_tokens([text[start:end] + "\n\n" for start, end in spans])
    for (start, end), tokens in zip(spans, counts, strict=True):
        if tokens <= size:
            pieces.append(_Piece(start, end, tokens))
        else:
            pieces += _cut(text, start, end, count_tokens, size, (SENTENCE, WORD))
    return pieces


def _cut(
    text: str, start: int, end: int, count_tokens: CountTokens, size: int, patterns: Sequence[re.Pattern[str]]
) -> Iterator[_Piece]:
    """The parts that the first pattern finds; those that are too long are cut by the next one."""
    parts = [found.span() for found in patterns[0].finditer(text, start, end) if found[0].strip()]
    for (first, last), tokens in zip(parts, count_tokens([text[a:b] for a, b in parts]), strict=True):
        first += len(text[first:last]) - len(text[first:last].lstrip())
        if tokens <= size or len(patterns) == 1:
            yield _Piece(first, last, tokens)
        else:
            yield from _cut(text, first, last, count_tokens, size, patterns[1:])


def _pack(pieces: Sequence[_Piece], size: int, overlap: int) -> Iterator[list[_Piece]]:
    """Runs of neighbours of at most `size` tokens, as long as can be."""
    run: list[_Piece] = []
    total = 0
    for piece in pieces:
        if run and total + piece.tokens > size:
            yield run
            run = _tail(run, min(overlap, size - piece.tokens))
            total = sum(one.tokens for one in run)
        run.append(piece)
        total += piece.tokens
    if run:
        yield run


def _tail(run: Sequence[_Piece], most: int) -> list[_Piece]:
    """The last pieces, of at most so many tokens, but never all."""
    kept: list[_Piece] = []
    total = 0
    for piece in reversed(run[1:]):
        total += piece.tokens
        if total > most:
            break
        kept.insert(0, piece)
    return kept
