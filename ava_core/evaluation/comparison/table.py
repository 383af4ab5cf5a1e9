"""A comparison as plain tables, for a terminal or a pipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from ava_core.evaluation.losses import FLOAT

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, header, rows."""
LONGEST_VALUE = 60
NONE = "-"


def letters(count: int) -> list[str]:
    """A, B, C, ...: what the sides are called in tables; S27 and so on after Z."""
    return [ascii_uppercase[i] if i < len(ascii_uppercase) else f"S{i + 1}" for i in range(count)]


def basis(comparison: Mapping[str, Any]) -> str:
    """On what the figures and their intervals stand, in a line."""
    text = comparison["text"]
    unit = "documents" if text["unit"] == "documents" else "parts of documents"
    return (
        f"{text['documents']:,} documents, {text['bytes']:,} bytes; {confidence(comparison)} intervals"
        f" from {comparison['resamples']:,} resamples of {text['units']:,} {unit}"
    )


def confidence(comparison: Mapping[str, Any]) -> str:
    """Of the intervals, in percent."""
    return f"{100 * (1 - comparison['significance']):.4g}%"


def tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Figures, routers, settings, documents: those that have rows."""
    names = letters(len(comparison["sides"]))
    found = [
        _figures(comparison, names),
        _routing(comparison, names),
        _settings(comparison, names),
        _documents(comparison, names),
    ]
    return [table for table in found if table[2]]


def figure_value(name: str, value: float) -> str:
    """A figure as it is shown: a share in percent, all else with four decimals."""
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"


def figure_change(name: str, value: float) -> str:
    """A difference of figures: percentage points, or with four decimals and the sign."""
    if not value:
        return "0"
    return f"{100 * value:+.2f}" if name.endswith("accuracy") else f"{value:+.4f}"


def figure_interval(name: str, found: Mapping[str, Any]) -> str:
    """The interval of a difference; empty where the text has too few units for one."""
    if found["low"] is None:
        return ""
    return f"[{figure_change(name, found['low'])}, {figure_change(name, found['high'])}]"


def label(name: str, model: str) -> str:
    """The figure's name, with the scheme before it as in metrics.json."""
    return name if model == FLOAT else f"{model}_{name}"


def _figures(comparison: Mapping[str, Any], names: Sequence[str]) -> Table:
    base, *others = names
    header = ("figure", *names)
    for other in others:
        header += (f"{other} - {base}", "interval", "")
    rows = []
    for row in comparison["figures"]:
        name = row["figure"]
        cells = [label(name, row["model"]), *(figure_value(name, value) for value in row["values"])]
        for found in row["differences"]:
            cells += [figure_change(name, found["value"]), figure_interval(name, found), found["verdict"]]
        rows.append(tuple(cells))
    return "", header, rows


def _routing(comparison: Mapping[str, Any], names: Sequence[str]) -> Table:
    rows = []
    for part in comparison["routing"]:
        for name, values in part["figures"].items():
            if not any(value is not None for value in values):
                continue
            shown = [NONE if value is None else f"{value:.4g}" for value in values]
            rows.append((label(name, part["model"]), *shown))
        if any(distance is not None for distance in part["load_distance"]):
            means = [NONE if each is None else f"{sum(each) / len(each):.4f}" for each in part["load_distance"]]
            rows.append((label("load_distance", part["model"]), "0", *means))
    for name in ("expert_agreement", "top1_agreement"):
        found = comparison["agreement"]
        if any(found):
            rows.append((name, "1", *(f"{each[name]:.4f}" if each else NONE for each in found)))
    return "routing", ("figure", *names), rows


def _settings(comparison: Mapping[str, Any], names: Sequence[str]) -> Table:
    rows = [
        (row["setting"], *(NONE if value is None else _short(value) for value in row["values"]))
        for row in comparison["settings"]
    ]
    return "settings that differ", ("setting", *names), rows


def _documents(comparison: Mapping[str, Any], names: Sequence[str]) -> Table:
    rows = [
        (row["name"], f"{row['bytes']:,}", *(f"{value:.4f}" for value in row["test_bits_per_byte"]))
        for row in comparison["documents"]
    ]
    return "bits per byte of the documents that differ most", ("document", "bytes", *names), rows


def _short(value: str) -> str:
    """A setting in one line of bounded length; of a fraction six digits."""
    if re.fullmatch(r"-?[0-9]+\.[0-9]+(e-?[0-9]+)?", value):
        return f"{float(value):.6g}"
    line = " ".join(value.split())
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 3]}..."
