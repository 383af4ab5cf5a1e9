"""sweep.html: a sweep as one page that needs no network and no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from ava_core.pages import page_environment
from ava_core.sweeping import charts
from ava_core.sweeping.results import Results, TrialRow


def render(results: Results) -> str:
    """The page, a function of its argument alone. All text is escaped."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(figure=_figure, setting=charts.text_of)
    best = results.best
    return environment.get_template("report.html.jinja").render(
        results=results,
        best=best,
        goals=list(results.objectives),
        counts=results.counts(),
        seconds=sum(row.seconds or 0.0 for row in results.rows),
        parallel=_svg(charts.parallel_coordinates(results)),
        importance=_svg(charts.importance_bars(results.importances)),
        front=_svg(charts.pareto_front(results)),
        progress=_svg(charts.progress(results)),
        curves=_svg(charts.curves(results)),
        colour=lambda row: charts.colour_of(row, results),
        note=_note,
    )


def _svg(text: str) -> Markup:
    """What stands in a figure has been escaped there."""
    return Markup(text)  # noqa: S704


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.5g}"


def _note(row: TrialRow) -> str:
    return row.reason or ("on the front" if row.on_front else "")
