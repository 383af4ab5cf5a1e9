"""The comparison as one HTML page that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ava_core.evaluation import report
from ava_core.evaluation.comparison import charts
from ava_core.evaluation.comparison.table import (
    NONE,
    basis,
    figure_change,
    figure_interval,
    figure_value,
    label,
    letters,
    tables,
)
from ava_core.pages import page_environment

FOLDERS = (Path(__file__).parent, Path(report.__file__).parent)
"""Of the template, and of the report's style sheet."""
TONES = {"better": "good", "worse": "bad"}


def render(comparison: Mapping[str, Any]) -> str:
    """The page, a function of its argument alone. All text is escaped."""
    environment = page_environment(*FOLDERS)
    environment.globals.update(
        change=figure_change,
        interval=figure_interval,
        label=label,
        none=NONE,
        tone=lambda verdict: TONES.get(verdict, ""),
    )
    environment.filters.update(figure=lambda value, name: figure_value(name, value))
    names = letters(len(comparison["sides"]))
    same = comparison["same_tokens"]
    return environment.get_template("comparison.html.jinja").render(
        comparison=comparison,
        names=names,
        basis=basis(comparison),
        tables=[table for table in tables(comparison) if table[0]],
        positions=Markup(charts.positions(comparison["positions"], names)),  # noqa: S704  numbers and our own words
        frequencies=Markup(charts.frequencies(comparison["frequencies"], names)) if same else "",  # noqa: S704
        intervals=Markup(charts.intervals(comparison, names)),  # noqa: S704
    )
