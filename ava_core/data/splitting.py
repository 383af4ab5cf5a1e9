"""Division of the documents into train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ava_core.config.data import SplitConfig
from ava_core.data.shards import SPLITS
from ava_core.errors import AvaError


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one, in a split.

    Attributes:
        document: position of the document.
        start: first character.
        end: character after the last one; None: to the end.
    """

    document: int
    start: int = 0
    end: int | None = None


def split_documents(texts: Sequence[str], config: SplitConfig) -> dict[str, list[Piece]]:
    """Assign documents to the splits.

    `document`: documents are ranked by SHA-256(salt, content) and cut at cumulative bytes, as near to the shares as
    whole documents allow; equal documents are never in two splits. `position`: the texts in their order are one text,
    cut at exactly the shares of its bytes (at the start of a character).

    Returns:
        The pieces of each split, in their order; no split is empty.

    Raises:
        AvaError: there are too few documents, or too little text, for three splits.
    """
    parts = _by_document(texts, config) if config.by == "document" else _by_position(texts, config)
    return dict(zip(SPLITS, parts, strict=True))


def _by_document(texts: Sequence[str], config: SplitConfig) -> list[list[Piece]]:
    groups: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        digest = hashlib.sha256(f"{config.salt}\0{text}".encode()).hexdigest()
        groups.setdefault(digest, []).append(position)
    if len(groups) < len(SPLITS):
        raise AvaError(
            f"the corpus has {len(groups)} different documents after cleaning: train, validation and test need one"
            " each: add documents, set data.document_separator, or set data.split.by: position"
        )
    ranked = [groups[digest] for digest in sorted(groups)]
    sizes = [sum(len(texts[position].encode()) for position in group) for group in ranked]
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    first = _nearest(ends, config.train * ends[-1], 1, len(ranked) - 2)
    second = _nearest(ends, (config.train + config.validation) * ends[-1], first + 1, len(ranked) - 1)
    bounds = (0, first, second, len(ranked))
    return [[Piece(position) for group in ranked[start:end] for position in group] for start, end in pairwise(bounds)]


def _nearest(ends: list[int], target: float, low: int, high: int) -> int:
    """The number of groups, between `low` and `high`, whose bytes come nearest to `target`."""
    return min(range(low, high + 1), key=lambda count: abs(ends[count] - target))


def _by_position(texts: Sequence[str], config: SplitConfig) -> list[list[Piece]]:
    sizes = [len(text.encode()) for text in texts]
    total = sum(sizes)
    targets = [int(total * config.train), int(total * (config.train + config.validation)), total]
    parts: list[list[Piece]] = [[], [], []]
    offset = part = 0
    for position, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        start = 0
        while offset + size > targets[part]:
            end = len(text.encode()[: targets[part] - offset].decode(errors="ignore"))
            if end > start:
                parts[part].append(Piece(position, start, end))
            start = max(start, end)
            part += 1
        if start < len(text):
            parts[part].append(Piece(position, start))
        offset += size
    if not all(parts):
        raise AvaError(
            f"the corpus has {total} bytes after cleaning: too few for train, validation and test at"
            " data.split.train and data.split.validation: add text"
        )
    return parts
