"""Early stopping, by the validation loss."""

from __future__ import annotations

from typing import Any

from ava_core.training.callbacks.base import Callback, Row, Run


class EarlyStopping(Callback):
    """Ends the training after `patience` evaluations in a row without a lower validation loss.

    Args:
        patience: `train.early_stopping_patience`.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    def after_evaluation(self, run: Run, row: Row) -> None:
        loss = row["validation_loss"]
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.waited = loss, int(row["step"]), 0
        else:  # nan is no improvement
            self.waited += 1
        if run.ranks.broadcast_object(self.waited >= self.patience):
            run.stop(
                f"train.early_stopping_patience = {self.patience}: no validation loss below that of step"
                f" {self.best_step} ({self.best:.4f})"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
