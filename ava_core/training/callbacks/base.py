"""What happens around a step: the interface of a callback, and a list of them that acts as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.training.history import History
from ava_core.training.objective import TrainedModel
from ava_core.training.speed.clock import PhaseClock

Row = dict[str, float]
"""Figures of one step, as they go to the history."""


class Run(Protocol):
    """What a callback sees of the training that calls it, and how it ends it.

    Attributes:
        config: the section `train`.
        ranks: this process among those that train together.
        model: with the weights that are trained (not their average).
        history: the rows of the steps before.
        clock: seconds in steps.
        step: optimiser steps done, skipped ones too.
        tokens_seen: tokens trained on, by all ranks.
        tokens_per_second: of all ranks, over the steps that this process has made.
    """

    @property
    def config(self) -> TrainConfig: ...
    @property
    def ranks(self) -> Ranks: ...
    @property
    def model(self) -> TrainedModel: ...
    @property
    def history(self) -> History: ...
    @property
    def clock(self) -> PhaseClock: ...
    @property
    def step(self) -> int: ...
    @property
    def tokens_seen(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...

    def stop(self, reason: str) -> None:
        """End after the present step; all ranks must ask for it at the same step."""


class Callback:
    """Does nothing; a callback overrides what it needs. All ranks call all methods, in the same order.

    Whatever is added to a row must be the same on every run of the same training: rows are compared byte by byte.
    """

    @property
    def name(self) -> str:
        """What its state is stored under in a checkpoint."""
        return type(self).__name__

    def on_start(self, run: Run) -> None:
        """Before the first step; after `load_state_dict` where a checkpoint is restored."""

    def after_step(self, run: Run, row: Row) -> None:
        """After each step. `row["step"]` counts from 1; it holds the validation figures if the step was evaluated."""

    def after_evaluation(self, run: Run, row: Row) -> None:
        """After a measurement; `row` has validation_loss and validation_bits_per_byte. Comes before `after_step`."""

    def on_end(self, run: Run) -> None:
        """After the last step, and also when the training ends with an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know to decide the same: values that JSON takes, or tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


class CallbackList(Callback):
    """Calls several in their order. One that isn't in a checkpoint starts afresh.

    Args:
        callbacks: with names that differ.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.on_start(run)

    def after_step(self, run: Run, row: Row) -> None:
        for callback in self.callbacks:
            callback.after_step(run, row)

    def after_evaluation(self, run: Run, row: Row) -> None:
        for callback in self.callbacks:
            callback.after_evaluation(run, row)

    def on_end(self, run: Run) -> None:
        for callback in self.callbacks:
            callback.on_end(run)

    def state_dict(self) -> dict[str, Any]:
        return {callback.name: state for callback in self.callbacks if (state := callback.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for callback in self.callbacks:
            if callback.name in state:
                callback.load_state_dict(state[callback.name])
