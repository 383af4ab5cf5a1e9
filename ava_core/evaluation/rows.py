"""An evaluation by rows: what each model lost on each document, and what it wrote, for tables and pages of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.evaluation import losses
from ava_core.evaluation.losses import Losses, NoLossesError
from ava_core.runtime.reading import read_object
from ava_core.tracking.records import Row

DOCUMENT = "document"
MAX_DOCUMENTS, MAX_SAMPLES = 100, 50
"""Rows that are recorded, each a request to a server: the longest documents, the first samples."""


def document_columns(found: Losses, limit: int) -> dict[str, list[Any]]:
    """Columns of equal length by name: each document's name, bits per byte and accuracy of each model, and its size.

    Args:
        found: of an evaluation.
        limit: how many documents there are at most, the longest in their order.
    """
    counts = [len(document.bytes) for document in found.documents]
    of_part = np.repeat(np.arange(len(counts)), counts)
    size, tokens = (np.bincount(of_part, each) for each in (found.bytes, found.tokens))
    columns: dict[str, list[Any]] = {DOCUMENT: [document.name for document in found.documents]}
    for model, sums in found.sums.items():
        nats, correct, _ = (np.bincount(of_part, column) for column in sums.T)
        columns[f"{model} bits per byte"] = (nats / math.log(2) / np.maximum(size, 1)).tolist()
        columns[f"{model} accuracy"] = (correct / np.maximum(tokens, 1)).tolist()
    columns |= {"bytes": size.astype(int).tolist(), "tokens": tokens.astype(int).tolist()}
    kept = sorted(np.argsort(-size, kind="stable")[:limit].tolist())
    return {name: [values[row] for row in kept] for name, values in columns.items()}


def evaluated_rows(contents: Mapping[str, Any], found: Losses | None) -> list[Row]:
    """The rows of an evaluation that are recorded: documents with their figures, then samples.

    Args:
        contents: evaluation.json.
        found: losses.jsonl, where there is one.
    """
    columns = document_columns(found, MAX_DOCUMENTS) if found else {DOCUMENT: []}
    rows = [
        Row(
            kind=DOCUMENT,
            request={DOCUMENT: name},
            response=f"{columns['bytes'][index]:,} bytes, {columns['tokens'][index]:,} tokens",
            figures={
                column: values[index]
                for column, values in columns.items()
                if column not in (DOCUMENT, "bytes", "tokens")
            },
        )
        for index, name in enumerate(columns[DOCUMENT])
    ]
    return rows + _samples(contents.get("samples", []))


def read_rows(evaluation: Path) -> list[Row]:
    """The same of an output folder of `ava evaluate`.

    Raises:
        IntegrityError: a file of it can't be read.
    """
    contents = read_object(evaluation / "evaluation.json", "run `ava evaluate` again")
    try:
        found = losses.read(evaluation)
    except NoLossesError:
        found = None
    return evaluated_rows(contents, found)


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        Row(
            kind="sample",
            request={name: item[name] for name in ("prompt", "model", "strategy")},
            response=item["text"][len(item["prompt"]) :],
            figures={},
        )
        for item in samples[:MAX_SAMPLES]
    ]
