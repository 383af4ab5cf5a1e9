"""The page's charts, as SVG to be put into it. The same values give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ava_core.evaluation.charts import ACCENT, FAINT, INK, STYLE, WARM, binned, to_svg

COLORS = (INK, ACCENT, WARM, "#2f7d4f", "#7a4d9a", "#8a7a2f")
SIZE = (5.6, 3.2)


def positions(losses: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    """Mean test loss by position in the window, a line for each side."""
    lines = [zip(*[((start + end + 1) / 2, loss) for start, end, loss in binned(each)], strict=True) for each in losses]
    return _curves(lines, names, "position in the window, tokens", "comparison-positions")


def frequencies(rows: Sequence[Sequence[Mapping[str, float]]], names: Sequence[str]) -> str:
    """Mean test loss by how often the token occurs in the text, a line for each side."""
    lines = [zip(*[(row["occurrences"], row["loss"]) for row in each], strict=True) for each in rows]
    return _curves(lines, names, "occurrences of the token in the text, at least", "comparison-frequencies")


def _curves(lines: Sequence[Any], names: Sequence[str], what: str, salt: str) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for index, (line, name) in enumerate(zip(lines, names, strict=True)):
            points = list(line)
            if points:
                axes.plot(
                    *points, color=COLORS[index % len(COLORS)], marker="o", markersize=2.5, linewidth=1.2, label=name
                )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_xlabel(what)
        axes.set_ylabel("nats per token")
        axes.legend(loc="upper right")
        return to_svg(figure, salt)


def intervals(comparison: Mapping[str, Any], names: Sequence[str]) -> str:
    """The differences in bits per byte with their intervals, a row for each side and model."""
    rows = [
        (f"{name} {row['model']}", found)
        for row in comparison["figures"]
        if row["figure"] == "test_bits_per_byte"
        for name, found in zip(names[1:], row["differences"], strict=True)
    ]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(10.4, 0.7 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (_, found) in enumerate(rows):
            color = {"worse": WARM, "better": ACCENT}.get(found["verdict"], FAINT)
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], color=color, linewidth=2.4)
            axes.plot([found["value"]], [place], color=color, marker="o", markersize=6)
        axes.axvline(0, color=INK, linewidth=0.9)
        ends = [abs(found[key] or 0.0) for _, found in rows for key in ("value", "low", "high")]
        reach = 1.1 * max([*ends, 1e-4])
        axes.set_xlim(-reach, reach)
        axes.set_yticks(np.arange(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"bits per byte more than {names[0]}; left of 0 is better")
        return to_svg(figure, "comparison-intervals")
