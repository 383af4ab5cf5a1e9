"""Peak memory of a training against its plan and its budget."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ava_core.config.hardware import GIB
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.memory.measure import recompute
from ava_core.training.memory.out_of_memory import free_memory
from ava_core.training.memory.plan import MemoryPlan
from ava_core.training.process import peak_memory_bytes

log = logging.getLogger(__name__)
TOLERATED_SHARE = 1.15
TOLERATED_BYTES = 256 * 2**20
"""Excess over the plan that isn't warned of: as a share, and in bytes of libraries that are loaded on first use."""


class MemoryWatch(Callback):
    """Warns where a training takes more memory than planned, or than `train.memory_budget`: once for each.

    Past its budget, a training in one process goes on with every layer recomputing its activations, which changes no
    result; several processes under ZeRO would deadlock if they recomputed different layers.

    Args:
        plan: what was estimated.
        measure: bytes of the highest peak of this process so far.
    """

    def __init__(self, plan: MemoryPlan, measure: Callable[[], int] = peak_memory_bytes) -> None:
        self.plan, self._measure = plan, measure
        self._told = self._told_again = False
        self._highest = 0

    def on_start(self, run: Run) -> None:
        # What was taken before the first step, as by the pass that the plan measured, isn't counted as the training's.
        self._highest = self._measure()

    def after_step(self, run: Run, row: Row) -> None:
        peak = self._measure()
        if peak <= self._highest:
            return
        budget = run.config.memory_budget
        if budget is not None and peak > budget * GIB:
            self._past_budget(run, int(row["step"]), peak)
        elif not self._told and peak > self._expected():
            self._told = True
            log.warning("memory: %s", self._figures(run, int(row["step"]), peak) + self._way_out(run))
        self._highest = peak

    def _expected(self) -> float:
        return max(TOLERATED_SHARE * self.plan.total_bytes, self.plan.total_bytes + TOLERATED_BYTES)

    def _past_budget(self, run: Run, step: int, peak: int) -> None:
        layers = run.model.model.layers
        recomputing = sum(layer.gradient_checkpointing for layer in layers)
        line = f"train.memory_budget = {run.config.memory_budget:g} GiB is exceeded: {self._figures(run, step, peak)}"
        if recomputing < len(layers) and run.ranks.size == 1:
            recompute(run.model, tuple(range(len(layers))))
            free_memory()
            now = f": from now on all {len(layers)} layers recompute instead of {recomputing}"
            log.warning("memory: %s", line + now + self._way_out(run))
        elif not self._told_again:
            self._told_again = True
            log.warning("memory: %s", line + self._way_out(run))

    def _figures(self, run: Run, step: int, peak: int) -> str:
        return f"{peak / GIB:.2f} GiB taken by step {step}, {self.plan.total_bytes / GIB:.2f} estimated"

    def _way_out(self, run: Run) -> str:
        config = run.config
        return (
            f": to take less, lower train.micro_batch_size (now {config.micro_batch_size}) or"
            f" train.sequence_length (now {config.sequence_length})"
        )
