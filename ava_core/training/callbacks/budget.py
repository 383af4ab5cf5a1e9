"""The end of a training by time or by tokens."""

from __future__ import annotations

from ava_core.config.train import TrainConfig
from ava_core.training.callbacks.base import Callback, Row, Run


class Budget(Callback):
    """Ends the training after `train.max_minutes` in steps, or `train.max_tokens`, whichever comes first.

    Time is what the first rank's clock says: with clocks of their own, ranks would end at different steps.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.max_seconds = None if config.max_minutes is None else 60 * config.max_minutes
        self.max_tokens = config.max_tokens

    def after_step(self, run: Run, row: Row) -> None:
        if self.max_tokens is not None and run.tokens_seen >= self.max_tokens:
            run.stop(f"train.max_tokens = {self.max_tokens:,} have been seen")
        if self.max_seconds is not None and run.ranks.broadcast_object(run.clock.seconds >= self.max_seconds):
            run.stop(f"train.max_minutes = {self.max_seconds / 60:g} are over")


def share_done(run: Run, step: int) -> float:
    """How much of the whole training is done after `step` steps, in [0, 1]: of steps, time or tokens, the most."""
    config = run.config
    shares = [step / config.steps]
    if config.max_minutes is not None:
        shares.append(run.clock.seconds / (60 * config.max_minutes))
    if config.max_tokens is not None:
        shares.append(run.tokens_seen / config.max_tokens)
    return min(1.0, max(shares))
