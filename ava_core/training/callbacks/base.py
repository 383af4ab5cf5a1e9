"""What may happen around a step: the interface of a callback, and a list of them that acts as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ava_core.training.trainer import Trainer

Row = dict[str, float]
"""Figures of one step, as they go to the history."""


class Callback:
    """Does nothing; a callback overrides what it needs. All ranks call all methods, in the same order.

    Whatever is added to a row must be the same on every run of the same training: rows are compared byte by byte.
    """

    @property
    def name(self) -> str:
        """What its state is stored under in a checkpoint."""
        return type(self).__name__

    def on_start(self, run: Trainer) -> None:
        """Before the first step; after `load_state_dict` where a checkpoint is restored."""

    def after_step(self, run: Trainer, row: Row) -> None:
        """After each step. `row["step"]` counts from 1; it holds the validation figures if the step was evaluated."""

    def after_evaluation(self, run: Trainer, row: Row) -> None:
        """After a measurement; `row` has validation_loss and validation_bits_per_byte. Comes before `after_step`."""

    def on_end(self, run: Trainer) -> None:
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

    def on_start(self, run: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_start(run)

    def after_step(self, run: Trainer, row: Row) -> None:
        for callback in self.callbacks:
            callback.after_step(run, row)

    def after_evaluation(self, run: Trainer, row: Row) -> None:
        for callback in self.callbacks:
            callback.after_evaluation(run, row)

    def on_end(self, run: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_end(run)

    def state_dict(self) -> dict[str, Any]:
        return {callback.name: state for callback in self.callbacks if (state := callback.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for callback in self.callbacks:
            if callback.name in state:
                callback.load_state_dict(state[callback.name])
