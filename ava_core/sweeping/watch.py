"""Watching a training's figures while it runs: whether its trial is to end early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

HISTORY = "history.jsonl"
WATCHED = ("validation_loss", "validation_bits_per_byte")

Judge = Callable[[int, float], bool]
"""Called with a training step and the figure on the validation split there; whether the trial is to end."""


class Watch:
    """Asks about the rows of a history, each once and in order.

    Args:
        judge: is asked.
        steps: of the whole training; its last row isn't asked about, for there is nothing to save any more.
    """

    def __init__(self, judge: Judge, steps: int) -> None:
        self.judge, self.steps = judge, steps
        self.last = -1
        self.ended_at: int | None = None

    def ends(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Whether one of the rows so far has ended the trial."""
        for row in rows:
            step = int(row["step"])
            if self.ended_at is not None or step >= self.steps:
                break
            if all(name in row for name in WATCHED):
                self.last = step
                # Of the tokens of other vocabularies, a loss can't be compared; bits per byte can.
                if self.judge(step, float(row["validation_bits_per_byte"])):
                    self.ended_at = step
        return self.ended_at is not None
