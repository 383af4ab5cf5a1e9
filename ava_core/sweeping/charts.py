"""The figures of a sweep's page, as SVG to be put into it. The same values give the same bytes.

Whatever belongs to a trial has `data-trial`, so that the page shows it wherever one of its marks is pointed at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ava_core.sweeping.results import Results, TrialRow
from ava_core.sweeping.space import ObjectiveConfig

WIDTH, HEIGHT = 1060, 340
SMALL_WIDTH, SMALL_HEIGHT = 500, 300
GOOD, BAD = (29, 92, 135), (222, 198, 184)
"""Colours of the best and the worst trial, between which the others are."""
LOG_RATIO = 20.0
"""Numbers that lie further apart than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """Attributes:
    label: of the axis.
    place: position in [0, 1] of a value; 0 is the lower end.
    ticks: positions and what stands there.
    """

    label: str
    place: Callable[[Any], float]
    ticks: Sequence[tuple[float, str]]


def axis_of(label: str, values: Sequence[Any]) -> Axis:
    """Numbers on a scale, linear or logarithmic; anything else at equal distances, in the order of its appearance."""
    if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _numeric(label, [float(value) for value in values])
    names = list(dict.fromkeys(map(text_of, values)))
    places = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
    return Axis(label, lambda value: places[text_of(value)], [(place, name) for name, place in places.items()])


def _numeric(label: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_RATIO
    scale = math.log if log else float
    span = scale(high) - scale(low)

    def place(value: Any) -> float:
        return (scale(float(value)) - scale(low)) / span if span else 0.5

    if not span:
        return Axis(label, place, [(0.5, f"{low:.4g}")])
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    at = [math.exp(math.log(low) + share * span) if log else low + share * span for share in shares]
    if not log and all(value.is_integer() for value in values):  # of trials or steps there are no halves
        at = [float(value) for value in dict.fromkeys(map(round, at))]
    return Axis(label, place, [(place(value), f"{value:.4g}") for value in at])


def parallel_coordinates(results: Results) -> str:
    """A line for each trial over its settings and figures; better ones are darker and lie above."""
    rows = [row for row in results.rows if row.settings]
    if not rows:
        return ""
    names = [goal.name for goal in results.objectives]
    measured = [name for name in names if any(name in row.values for row in rows)]
    axes = [axis_of(key, [row.settings[key] for row in rows]) for key in results.keys]
    axes += [axis_of(name, [row.values[name] for row in rows if name in row.values]) for name in measured]
    left, right, top, bottom = 70, 90, 44, 18
    step = (WIDTH - left - right) / max(1, len(axes) - 1)
    xs = [left + index * step for index in range(len(axes))]

    def y(place: float) -> float:
        return HEIGHT - bottom - place * (HEIGHT - top - bottom)

    parts = []
    for x, axis in zip(xs, axes, strict=True):
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y(1):.1f}" y2="{y(0):.1f}"/>')
        parts.append(f'<text class="name" x="{x:.1f}" y="18" text-anchor="middle">{escape(axis.label)}</text>')
        parts += [
            f'<text class="tick" x="{x + 6:.1f}" y="{y(place) + 3.5:.1f}">{escape(_cut(name))}</text>'
            for place, name in axis.ticks
        ]
    lines = []
    for row in reversed(rows):  # the best is drawn last
        places = [axis.place(row.settings[key]) for axis, key in zip(axes, results.keys, strict=False)]
        places += [
            axes[len(results.keys) + index].place(row.values[name])
            for index, name in enumerate(measured)
            if name in row.values
        ]
        points = " ".join(f"{x:.1f},{y(place):.1f}" for x, place in zip(xs, places, strict=False))
        lines.append(_mark(f'<polyline points="{points}"', row, results, "line"))
    return _svg(WIDTH, HEIGHT, [*lines, *parts], "parallel coordinates")


def importance_bars(importances: Mapping[str, float]) -> str:
    """A bar for each key; they add up to 1."""
    if not importances:
        return ""
    height, left = 34 * len(importances) + 12, 210
    parts = []
    for index, (key, share) in enumerate(sorted(importances.items(), key=lambda item: -item[1])):
        y, width = 8 + 34 * index, share * (SMALL_WIDTH - left - 60)
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 16}" text-anchor="end">{escape(_cut(key, 32))}</text>'
        )
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{max(1.0, width):.1f}" height="22" rx="3"/>')
        parts.append(f'<text class="tick" x="{left + max(1.0, width) + 6:.1f}" y="{y + 15}">{share:.0%}</text>')
    return _svg(SMALL_WIDTH, height, parts, "importance")


def pareto_front(results: Results) -> str:
    """Finished trials by their first two objectives; the front is filled and joined by a line."""
    if len(results.objectives) < 2:
        return ""
    first, second = results.objectives[0], results.objectives[1]
    rows = [row for row in results.rows if row.state == "complete"]
    points = [(row.values[first.name], row.values[second.name], row) for row in rows]
    return _scatter(results, points, first, second, joined=True)


def progress(results: Results) -> str:
    """The figure of each finished trial by its number, and the best so far."""
    goal = results.objectives[0]
    rows = sorted((row for row in results.rows if row.state == "complete"), key=lambda row: row.number)
    if not rows:
        return ""
    number = ObjectiveConfig(name="trial")
    points = [(float(row.number), row.values[goal.name], row) for row in rows]
    return _scatter(results, points, number, goal, best=True)


def curves(results: Results) -> str:
    """What the pruner saw: the figure on the validation split over the steps of each training."""
    rows = [row for row in results.rows if row.curve]
    if not rows:
        return ""
    across = axis_of("step", [step for row in rows for step in row.curve])
    up = axis_of("validation_bits_per_byte", [value for row in rows for value in row.curve.values()])
    frame = _Frame(across, up)
    parts = frame.parts()
    for row in reversed(rows):
        points = " ".join(f"{frame.x(step)},{frame.y(value)}" for step, value in row.curve.items())
        parts.append(_mark(f'<polyline points="{points}"', row, results, "line"))
        step, value = list(row.curve.items())[-1]
        end = "cross" if row.state == "pruned" else "dot"
        parts.append(_mark(f'<circle cx="{frame.x(step)}" cy="{frame.y(value)}" r="3"', row, results, end))
    return _svg(SMALL_WIDTH, SMALL_HEIGHT, parts, "validation while training")


class _Frame:
    """Two axes."""

    def __init__(self, across: Axis, up: Axis) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> str:
        return f"{64 + self.across.place(value) * (SMALL_WIDTH - 90):.1f}"

    def y(self, value: float) -> str:
        return f"{SMALL_HEIGHT - 44 - self.up.place(value) * (SMALL_HEIGHT - 74):.1f}"

    def parts(self) -> list[str]:
        width, low = SMALL_WIDTH - 90, SMALL_HEIGHT - 44
        parts = [f'<text class="name" x="64" y="16">{escape(self.up.label)}</text>']
        parts.append(
            f'<text class="name" x="{SMALL_WIDTH - 26}" y="{SMALL_HEIGHT - 6}" text-anchor="end">'
            f"{escape(self.across.label)}</text>"
        )
        for place, name in self.up.ticks:
            y = low - place * (SMALL_HEIGHT - 74)
            parts.append(f'<line class="axis" x1="64" x2="{64 + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="58" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
        for place, name in self.across.ticks:
            x = 64 + place * width
            parts.append(f'<text class="tick" x="{x:.1f}" y="{low + 18}" text-anchor="middle">{escape(name)}</text>')
        return parts


def _scatter(
    results: Results,
    points: Sequence[tuple[float, float, TrialRow]],
    across: ObjectiveConfig,
    up: ObjectiveConfig,
    *,
    joined: bool = False,
    best: bool = False,
) -> str:
    if not points:
        return ""
    frame = _Frame(axis_of(across.name, [x for x, _, _ in points]), axis_of(up.name, [y for _, y, _ in points]))
    parts = frame.parts()
    along: list[tuple[float, float]] = []
    if joined:
        along = sorted((x, y) for x, y, row in points if row.on_front)
    if best:
        better = min if up.goal == "minimize" else max
        for x, y, _ in points:
            along.append((x, better(y, along[-1][1]) if along else y))
    if len(along) > 1:
        line = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in along)
        parts.append(f'<polyline class="front" points="{line}"/>')
    for x, y, row in reversed(points):
        radius = 5.5 if row.on_front else 4
        parts.append(_mark(f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="{radius}"', row, results, "dot"))
    return _svg(SMALL_WIDTH, SMALL_HEIGHT, parts, f"{up.name} by {across.name}")


def _mark(start: str, row: TrialRow, results: Results, kind: str) -> str:
    """The opening of an element, with the trial's colour and what is shown when it is pointed at."""
    figures = ", ".join(f"{name} {value:.5g}" for name, value in row.values.items())
    settings = ", ".join(f"{key} = {text_of(value)}" for key, value in row.settings.items())
    title = escape(f"trial {row.number}, {row.state}: {figures or 'no figure'} ({settings})")
    colour = colour_of(row, results)
    return (
        f'{start} class="{kind} {row.state}" data-trial="{row.number}" style="--c:{colour}">'
        f"<title>{title}</title></{start[1:].split(' ', 1)[0]}>"
    )


def colour_of(row: TrialRow, results: Results) -> str:
    """Between the best and the worst finished trial, by rank; grey for the others."""
    ranked = [each.number for each in results.rows if each.state == "complete"]
    if row.number not in ranked:
        return "#c9ced3"
    share = ranked.index(row.number) / max(1, len(ranked) - 1)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(GOOD, BAD, strict=True))


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'


def text_of(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
