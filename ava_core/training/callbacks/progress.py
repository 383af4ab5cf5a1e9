"""The training on a progress bar, or in a line now and then."""

from __future__ import annotations

from contextlib import ExitStack

from ava_core.progress import Advance, Progress
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.callbacks.budget import share_done

SHOWN = ("validation_bits_per_byte", "validation_loss")
"""Of the figures that are measured now and then, the first that there is."""


class ProgressBar(Callback):
    """Shows how far the training is, its loss, tokens per second and the latest validation figure.

    Args:
        progress: shows nothing if it is quiet; only the first rank's is used.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._shown = ExitStack()
        self._advance: Advance | None = None
        self._validation: dict[str, str] = {}

    def on_start(self, run: Run) -> None:
        for row in run.history.rows:
            self._remember(row)
        if run.ranks.is_first:
            self._advance = self._shown.enter_context(self.progress.task("train", run.config.steps))

    def after_evaluation(self, run: Run, row: Row) -> None:
        self._remember(row)

    def after_step(self, run: Run, row: Row) -> None:
        if self._advance is not None:
            self._advance(
                run.config.steps * share_done(run, int(row["step"])),
                loss=f"{row['train_loss']:.3f}",
                tokens_per_second=f"{run.tokens_per_second:,.0f}",
                **self._validation,
            )

    def on_end(self, run: Run) -> None:
        self._advance = None
        self._shown.close()

    def _remember(self, row: Row) -> None:
        shown = next((name for name in SHOWN if name in row), None)
        if shown is not None:
            self._validation = {shown: f"{row[shown]:.3f}"}
