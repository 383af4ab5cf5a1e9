"""losses.jsonl: what each model of an evaluation lost on each document, for comparisons with models elsewhere.

A line per document, in the order of the split:

    {"name": ..., "sha256": ..., "bytes": [...], "tokens": [...],
     "models": {"float": {"nats": [...], "correct": [...], "top5": [...]}, "int8": ...}}

Lists are by part (`units`): bytes of its text, scored tokens, nats lost on them, and how many of them were the model's
first choice and among its first five. Sums over all lines are the evaluation's figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ava_core.errors import IntegrityError
from ava_core.files import parse_json

if TYPE_CHECKING:
    from ava_core.evaluation.scoring import Score

NAME = "losses.jsonl"
FLOAT = "float"
"""Name of the model that isn't quantised, in all that an evaluation writes."""
SUMS = ("nats", "correct", "top5")


class NoLossesError(IntegrityError):
    """An older Ava made an evaluation, or registered a model: there are no losses by document."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of the text that is scored.

    Attributes:
        name: where it came from.
        sha256: digest of its text, by which it is found in other evaluations.
        bytes: UTF-8 bytes of each of its parts.
        tokens: scored tokens of each part.
    """

    name: str
    sha256: str
    bytes: list[int]
    tokens: list[int]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What losses.jsonl holds.

    Attributes:
        documents: the text, in the order of the split.
        sums: for each model an array of shape (number of parts, 3): `SUMS` of every part, over all documents.
    """

    documents: list[Document]
    sums: dict[str, np.ndarray]

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of every part."""
        return np.asarray([size for document in self.documents for size in document.bytes], np.float64)

    @property
    def tokens(self) -> np.ndarray:
        """Scored tokens of every part."""
        return np.asarray([count for document in self.documents for count in document.tokens], np.float64)


def write(folder: Path, documents: Sequence[Document], scores: Mapping[str, Score]) -> None:
    """Write `folder`/losses.jsonl from scores whose units are the documents' parts."""
    lines, first = [], 0
    for document in documents:
        here = slice(first, first + len(document.bytes))
        models = {
            name: {"nats": score.unit_nats[here], "correct": score.unit_correct[here], "top5": score.unit_top5[here]}
            for name, score in scores.items()
        }
        lines.append(json.dumps({**asdict(document), "models": models}, ensure_ascii=False))
        first = here.stop
    (folder / NAME).write_text("".join(f"{line}\n" for line in lines))


def read(folder: Path) -> Losses:
    """Read `folder`/losses.jsonl.

    Raises:
        NoLossesError: it is missing.
        IntegrityError: it isn't what `write` writes.
    """
    path = folder / NAME
    if not path.is_file():
        raise NoLossesError(
            f"{path}: is missing: the evaluation keeps no losses by document, as before there was `ava compare`:"
            " run `ava evaluate` again"
        )
    documents: list[Document] = []
    sums: dict[str, list[np.ndarray]] = {}
    number = 0
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fields = parse_json(line)
            models = fields.pop("models")
            document = Document(**fields)
            if number > 1 and models.keys() != sums.keys():
                raise ValueError("other models than in line 1")
            for name, values in models.items():
                sums.setdefault(name, []).append(_sums(values, document))
            documents.append(document)
        if not documents:
            raise ValueError("no line")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}:{number}: can't be read ({error}): run `ava evaluate` again") from error
    return Losses(documents=documents, sums={name: np.concatenate(parts) for name, parts in sums.items()})


def _sums(values: Mapping[str, Any], document: Document) -> np.ndarray:
    lengths = {len(values[name]) for name in SUMS} | {len(document.tokens)}
    if lengths != {len(document.bytes)}:
        raise ValueError("lists of different lengths")
    array = np.asarray([values[name] for name in SUMS], np.float64).T
    if not np.isfinite(array).all():
        raise ValueError("a number that isn't finite")
    return array
