"""Medians, paired ratios, and how both are printed and kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.files import write_json

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Attributes:
    median: over rounds, of the quotient of two subjects' figures in the same round.
    low, high: its quartiles.
    """

    median: float
    low: float
    high: float


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Quotients of figures of the same round, so that a slow moment of the machine, which hits both, cancels.

    Raises:
        ValueError: the lengths differ, or there are no rounds.
    """
    if not numerators:
        raise ValueError("rounds = 0: must be > 0")
    quotients = [above / below for above, below in zip(numerators, denominators, strict=True)]
    if len(quotients) == 1:
        return Ratio(median=quotients[0], low=quotients[0], high=quotients[0])
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(median=median, low=low, high=high)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join((line(header), *(line(row) for row in rows)))


def keep(name: str, section: str, hardware: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> Path:
    """Write one section of `folder/name.json`, beside the others, with its hardware. Returns the path."""
    path = folder / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[section] = {"hardware": dict(hardware), **values}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, kept)
    return path


def kept_in(path: Path) -> str:
    """The line that says where `keep` has written, without naming folders of this machine."""
    return f"kept in {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}"
