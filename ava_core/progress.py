"""Progress of long work: a bar on a terminal, a plain line now and then otherwise, nothing when quiet."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

log = logging.getLogger(__name__)
LINE_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Called with the amount done so far, in the task's units, and figures to show beside it."""

    def __call__(self, done: float, **figures: str) -> None: ...


class Progress:
    """Shows how far pieces of work are.

    All bars are one display, on one console: two that draw over each other, or over a line of the log, would leave
    halves of themselves behind.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._display: Any = None

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Advance]:
        """Show one piece of work of `total` units; the value is a function `advance(done, **figures)`."""
        if self.quiet:
            yield lambda done, **figures: None
        elif sys.stderr.isatty():
            with self._bar(name, total) as advance:
                yield advance
        else:
            yield _Lines(name, total)

    @contextmanager
    def _bar(self, name: str, total: float) -> Iterator[Advance]:
        outermost = self._display is None
        if outermost:
            self._display = _display()
            self._display.start()
        try:
            bar = self._display.add_task(name, total=total, figures="")
            display = self._display

            def advance(done: float, **figures: str) -> None:
                display.update(bar, completed=done, figures=_join(figures))

            yield advance
        finally:
            if outermost:
                self._display.stop()
                self._display = None


def _display() -> Any:
    """Bars on standard error. While they are shown, `sys.stdout` and `sys.stderr` write above them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


class _Lines:
    """Plain lines, at most one in `LINE_EVERY_SECONDS`, with a remaining time from the rate so far."""

    def __init__(self, name: str, total: float) -> None:
        self.name, self.total = name, total
        self.started = self.shown = time.monotonic()
        self.first: float | None = None

    def __call__(self, done: float, **figures: str) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        if now - self.shown < LINE_EVERY_SECONDS and done < self.total:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        remaining = f"ETA {(self.total - done) / rate:.0f} s" if rate > 0 and done < self.total else ""
        log.info(
            "%s",
            "  ".join(filter(None, [f"{self.name} {done / max(self.total, 1e-9):4.0%}", _join(figures), remaining])),
        )


def _join(figures: dict[str, str]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
