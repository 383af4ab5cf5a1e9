"""The report's figures, as SVG to be put into the page. The same values give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

INK, FAINT, GRID, ACCENT, WARM = "#1f2933", "#7b8794", "#e4e7eb", "#1d5c87", "#b5532a"
DIVERGING = LinearSegmentedColormap.from_list("load", ["#b5532a", "#f0c9b0", "#f7f7f5", "#a9cbe0", "#1d5c87"])
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
}
AFTER_PRETRAINING = {
    "reward": "reward of the answers",
    "kl_to_start": "nats per token from the start",
    "answer_tokens": "tokens of an answer",
    "ended_answers": "share that ends by itself",
    "groups_alike": "share of groups worth the same",
    "rollout_kl": "nats per token from who sampled",
    "reward_accuracy": "share of pairs ranked rightly",
    "reward_margin": "margin of a pair",
    "answer_loss": "loss of the better answers",
}
"""Rows of a history, and what they are."""
LABELLED_CELLS = 400
"""Cells up to which a heat map shows its numbers."""
NARROW_SHARE = 0.06
"""Fraction of a heat map's width; the name of a narrower group of experts is rotated by 90 degrees."""


def to_svg(figure: Figure, name: str) -> str:
    """A figure as SVG text; `name` salts the ids inside, which must differ between the figures of one page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Trailing moving average over `window` values; near the beginning over those that there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def loss_curve(history: Sequence[dict[str, float]], test_loss: float) -> str:
    """Training loss, its running mean, validation loss and the test loss, in nats per token over steps."""
    train = [(row["step"], row["train_loss"]) for row in history if row.get("train_loss") is not None]
    validation = [(row["step"], row["validation_loss"]) for row in history if row.get("validation_loss") is not None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        if train:
            steps, losses = np.asarray(train, float).T
            window = max(1, len(losses) // 25)
            axes.plot(steps, losses, color=ACCENT, alpha=0.25, linewidth=0.9)
            axes.plot(steps, _smooth(losses, window), color=ACCENT, linewidth=1.6, label="training, smoothed")
        if validation:
            steps, losses = np.asarray(validation, float).T
            axes.plot(steps, losses, color=WARM, marker="o", markersize=3.5, linewidth=1.2, label="validation")
        axes.axhline(test_loss, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), label=f"test {test_loss:.3f}")
        axes.set_xlabel("step")
        axes.set_ylabel("nats per token")
        axes.legend(loc="upper right")
        return to_svg(figure, "loss-curve")


def position_curve(losses: Sequence[float | None]) -> str:
    """Mean test loss (nats per token) by position in the window, in up to 32 bins whose widths grow geometrically.

    `losses` are by position; None where no token was scored.
    """
    bins = binned(losses)
    centres = [(start + end + 1) / 2 for start, end, _ in bins]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(centres, [loss for *_, loss in bins], color=ACCENT, marker="o", markersize=3, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_xlabel("position in the window, tokens")
        axes.set_ylabel("nats per token")
        return to_svg(figure, "position-curve")


def training_curves(history: Sequence[dict[str, float]]) -> str:
    """Small charts over steps of what a training after pretraining has recorded beside its loss; empty if nothing."""
    found = {
        label: [(row["step"], row[name]) for row in history if row.get(name) is not None]
        for name, label in AFTER_PRETRAINING.items()
    }
    found = {label: points for label, points in found.items() if len(points) > 1}
    if not found:
        return ""
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(found))
        rows = -(-len(found) // columns)
        figure = Figure(figsize=(3.7 * columns, 2.2 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (label, points) in zip(panels, found.items(), strict=False):
            steps, values = np.asarray(points, float).T
            axes.plot(steps, values, color=ACCENT, alpha=0.3, linewidth=0.9)
            axes.plot(steps, _smooth(values, max(1, len(values) // 15)), color=ACCENT, linewidth=1.6)
            axes.set_title(label, fontsize=9, color=INK, loc="left")
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        return to_svg(figure, "training-curves")


def binned(losses: Sequence[float | None]) -> list[tuple[int, int, float]]:
    """Positions in bins whose widths grow geometrically: first, one after the last, mean loss; no empty ones."""
    values = np.asarray([np.nan if loss is None else loss for loss in losses], float)
    edges = np.unique(np.geomspace(1, len(values) + 1, 33).astype(int)) - 1
    return [
        (start, end, float(np.nanmean(values[start:end])))
        for start, end in pairwise(edges.tolist())
        if np.isfinite(values[start:end]).any()
    ]


def load_heat_map(relative_load_LE: np.ndarray, kinds: Sequence[str], dead_LE: np.ndarray) -> str:
    """Load of each expert in each layer, relative to an even share; dead experts are crossed out.

    Args:
        relative_load_LE: load over the layer's mean load; 1 is an even share.
        kinds: kind of each of the E experts; equal kinds are contiguous.
        dead_LE: bool, which experts are dead.
    """
    L, E = relative_load_LE.shape
    # On a log scale a half of an even share is as far from the middle as twice of it.
    shown = np.log2(np.clip(relative_load_LE, 2.0**-2, 2.0**2))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        width = float(np.clip(0.62 * E + 1.6, 6.0, 11.4))
        figure = Figure(figsize=(width, float(np.clip(0.42 * L + 1.1, 1.9, 9.0))), layout="constrained")
        axes = figure.subplots()
        norm = TwoSlopeNorm(0.0, -2.0, 2.0)
        mesh = axes.pcolormesh(
            np.arange(E + 1), np.arange(L + 1), shown, cmap=DIVERGING, norm=norm, edgecolors="white", linewidth=1.2
        )
        for layer, expert in np.argwhere(dead_LE):
            axes.plot(expert + 0.5, layer + 0.5, marker="x", color="white", markersize=7, markeredgewidth=1.8)
        if L * E <= LABELLED_CELLS:
            _label_cells(axes, relative_load_LE, shown, dead_LE)
        _mark_kinds(axes, kinds, L)
        axes.set_yticks(np.arange(L) + 0.5, [f"layer {layer}" for layer in range(L)])
        named = range(0, E, -(-E // 32))  # all of them, up to 32 experts
        axes.set_xticks([expert + 0.5 for expert in named], [str(expert) for expert in named])
        axes.set_xlabel("expert")
        axes.invert_yaxis()
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, ticks=[-2, -1, 0, 1, 2], pad=0.02, aspect=14)
        bar.ax.set_yticklabels(["1/4 or less", "half", "even", "twice", "4 times or more"])
        bar.outline.set_visible(False)
        return to_svg(figure, "expert-load")


def _label_cells(axes, relative_load_LE: np.ndarray, shown: np.ndarray, dead_LE: np.ndarray) -> None:
    for (layer, expert), value in np.ndenumerate(relative_load_LE):
        if not dead_LE[layer, expert]:
            color = "white" if abs(shown[layer, expert]) > 1.3 else INK
            axes.text(expert + 0.5, layer + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)


def _mark_kinds(axes, kinds: Sequence[str], layers: int) -> None:
    """Name each group of experts above it, with a line between the groups."""
    first = 0
    for expert in range(1, len(kinds) + 1):
        if expert == len(kinds) or kinds[expert] != kinds[first]:
            name = "FFN" if kinds[first] == "ffn" else kinds[first]
            rotation = 90 if (expert - first) / len(kinds) < NARROW_SHARE else 0
            centre = (first + expert) / 2
            axes.text(centre, -0.12, name, ha="center", va="bottom", fontsize=8.5, color=INK, rotation=rotation)
            if expert < len(kinds):
                axes.plot([expert, expert], [0, layers], color=INK, linewidth=1.2)
            first = expert
