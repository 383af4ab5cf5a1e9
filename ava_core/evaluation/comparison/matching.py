"""The same text in several evaluations: documents are matched by the digest of their text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ava_core.errors import AvaError
from ava_core.evaluation.comparison.bootstrap import FIGURES, Difference, Figure, interval, resampled_sums
from ava_core.evaluation.losses import SUMS, Document, Losses

MIN_DOCUMENTS = 50
"""From so many documents on, documents are resampled, else their parts."""
MIN_UNITS = 10
"""With fewer units there is no interval: it would be too narrow by far."""


class OtherTextError(AvaError):
    """Two evaluations are of different texts, so nothing pairs their losses."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Losses of several models on the same units of the same text.

    Attributes:
        unit: `documents` or `parts`, of documents.
        documents: the base's, in its order.
        of_unit: number of the document of each unit, shape (N,).
        bytes: of each unit, shape (N,).
        sides: for each side, the base first, by column: `tokens`, and `MODEL.nats`, `MODEL.correct`, `MODEL.top5` for
            each of its models; each of shape (N,).
    """

    unit: str
    documents: list[Document]
    of_unit: np.ndarray
    bytes: np.ndarray
    sides: list[dict[str, np.ndarray]]

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.bytes)

    def columns(self, side: int, model: str, figure: Figure) -> tuple[np.ndarray, np.ndarray]:
        """What a figure of a model is the ratio of, by unit."""
        below = self.bytes if figure.below == "bytes" else self.sides[side]["tokens"]
        return self.sides[side][f"{model}.{figure.top}"], below

    def value(self, side: int, model: str, name: str) -> float:
        """A figure on the whole text."""
        top, below = self.columns(side, model, FIGURES[name])
        return float(FIGURES[name].of_ratio(top.sum() / below.sum()))

    def differences(
        self, pairs: Sequence[tuple[int, str, str]], base_model: str, *, significance: float, resamples: int, seed: int
    ) -> list[Difference]:
        """Figures less the base's, with intervals over the same resamples.

        Args:
            pairs: side, model and figure of each.
            base_model: the model of the first side that they are compared with.
            significance: 1 less the confidence of the intervals.
            resamples: how often the units are drawn.
            seed: of the draws.
        """
        values = [self.value(side, model, name) - self.value(0, base_model, name) for side, model, name in pairs]
        if self.units < MIN_UNITS:
            return [Difference(value=value, low=None, high=None) for value in values]
        columns: dict[bytes, np.ndarray] = {}  # equal ones once: a product rounds them alike only in the same place
        quotients = []
        for side, model, name in pairs:
            terms = (*self.columns(side, model, FIGURES[name]), *self.columns(0, base_model, FIGURES[name]))
            quotients.append([term.tobytes() for term in terms])
            columns.update(zip(quotients[-1], terms, strict=True))
        place = {key: index for index, key in enumerate(columns)}
        sums_BK = resampled_sums(np.stack(list(columns.values()), axis=1), resamples, seed)
        found = []
        for (_, _, name), value, keys in zip(pairs, values, quotients, strict=True):
            top, below, base_top, base_below = (sums_BK[:, place[key]] for key in keys)
            of_ratio = FIGURES[name].of_ratio
            low, high = interval(of_ratio(top / below) - of_ratio(base_top / base_below), significance)
            found.append(Difference(value=value, low=low, high=high))
        return found

    def by_document(self, side: int, model: str, name: str) -> np.ndarray:
        """A figure on each document, shape (number of documents,)."""
        figure = FIGURES[name]
        top, below = (np.bincount(self.of_unit, column) for column in self.columns(side, model, figure))
        with np.errstate(invalid="ignore", divide="ignore"):
            return figure.of_ratio(top / below)


def match(sides: Sequence[tuple[str, Losses]]) -> Matched:
    """Bring the losses of all sides into the base's order of documents, over the same units.

    Args:
        sides: name and losses of each, the base first.

    Raises:
        OtherTextError: one isn't of the base's text.
    """
    base_name, base = sides[0]
    wanted = _keys(base.documents)
    tables = []
    for name, losses in sides:
        keys = _keys(losses.documents)
        if sorted(keys) != sorted(wanted):
            shared = len(set(keys) & set(wanted))
            raise OtherTextError(
                f"{name}: was evaluated on another text than {base_name}: of its {len(keys):,} documents {shared:,} are"
                f" among the {len(wanted):,} of the other"
            )
        place = {key: index for index, key in enumerate(keys)}
        parts = _by_document(losses)
        tables.append(([parts[place[key]] for key in wanted], [losses.documents[place[key]] for key in wanted], losses))
    whole = len(wanted) >= MIN_DOCUMENTS
    kept = [
        not whole and len({tuple(documents[i].bytes) for _, documents, _ in tables}) == 1 for i in range(len(wanted))
    ]
    arrays = [
        np.concatenate(
            [part if keep else part.sum(axis=0, keepdims=True) for part, keep in zip(parts, kept, strict=True)]
        )
        for parts, _, _ in tables
    ]
    counts = [len(document.bytes) if keep else 1 for document, keep in zip(base.documents, kept, strict=True)]
    return Matched(
        unit="documents" if whole or not any(count > 1 for count in counts) else "parts",
        documents=base.documents,
        of_unit=np.repeat(np.arange(len(counts)), counts),
        bytes=arrays[0][:, 0],
        sides=[_columns(array, losses) for array, (_, _, losses) in zip(arrays, tables, strict=True)],
    )


def _keys(documents: Sequence[Document]) -> list[tuple[str, int]]:
    """Digest of each document, and how many with the same text precede it."""
    seen: Counter[str] = Counter()
    keys = []
    for document in documents:
        keys.append((document.sha256, seen[document.sha256]))
        seen[document.sha256] += 1
    return keys


def _by_document(losses: Losses) -> list[np.ndarray]:
    """Bytes, tokens and the sums of all models, by part, one array for each document."""
    columns = [losses.bytes[:, None], losses.tokens[:, None], *losses.sums.values()]
    ends = np.cumsum([len(document.bytes) for document in losses.documents])
    return np.split(np.concatenate(columns, axis=1), ends[:-1])


def _columns(array: np.ndarray, losses: Losses) -> dict[str, np.ndarray]:
    names = ["tokens", *(f"{model}.{name}" for model in losses.sums for name in SUMS)]
    return {name: array[:, index] for index, name in enumerate(names, 1)}
