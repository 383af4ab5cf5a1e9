"""The table of losses in windows longer than those of the training."""

from __future__ import annotations

from typing import Any


def context_rows(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows by how many tokens of its document a model had read: `places`, `tokens`, whether the training reached so far
    (`trained`), and a cell for each model with its `loss` and `bits` as text. None without `evaluate.context`."""
    found = contents.get("context")
    if found is None:
        return []
    starts = [bucket["first"] for bucket in found["buckets"]]
    rows = []
    for index, (first, end) in enumerate(zip(starts, [*starts[1:], found["length"]], strict=True)):
        cells = [
            {"loss": _text(found["loss"][model][index]), "bits": _text(found["bits_per_byte"][model][index])}
            for model in found["loss"]
        ]
        if tokens := found["buckets"][index]["tokens"]:
            last = min(end, found["length"]) - 1
            places = f"{first:,} to {last:,}"
            rows.append({"places": places, "tokens": tokens, "trained": first < found["trained"], "cells": cells})
    return rows


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
