"""Where the time of a training goes: steps, the phases inside them, and what isn't counted as training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WORK = ("forward_backward", "update")
"""Phases that are the training itself; the rest of a step is the trainer's own work."""
ASIDE = ("evaluation", "checkpoint")
"""Phases that aren't part of a step's time, wherever they happen."""


class PhaseClock:
    """Seconds in steps, and in the phases that they consist of.

        with clock.step():
            with clock.phase("forward_backward"): ...
            with clock.phase("update"): ...
            with clock.phase("evaluation"): ...

    On a GPU a phase ends when its work is queued, so time goes to the phase that waits for the device.

    Attributes:
        steps: steps so far, those before a resume included.
        phases: seconds of each phase so far.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.phases: dict[str, float] = dict.fromkeys((*WORK, *ASIDE), 0.0)
        self._finished = 0.0
        self._started: float | None = None
        self._aside = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step with all that belongs to it; a step that raises isn't counted."""
        self._started, self._aside = time.perf_counter(), 0.0
        try:
            yield
            self._finished = self.seconds
            self.steps += 1
        finally:
            self._started = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the work: one of `WORK`, one of `ASIDE`, or another name. Phases don't nest."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.phases[name] = self.phases.get(name, 0.0) + seconds
            if name in ASIDE:
                self._aside += seconds

    @property
    def seconds(self) -> float:
        """Time in steps, the present one included; evaluations and checkpoints are left out."""
        if self._started is None:
            return self._finished
        return self._finished + time.perf_counter() - self._started - self._aside

    @property
    def overhead_share(self) -> float:
        """Share of the time in finished steps that is neither forward, backward nor optimiser; in [0, 1]."""
        if not self._finished:
            return 0.0
        return max(0.0, 1.0 - sum(self.phases[name] for name in WORK) / self._finished)

    def state_dict(self) -> dict[str, Any]:
        """The figures so far. Inside a step it counts as done: checkpoints are written at its end."""
        running = self._started is not None
        return {"seconds": self.seconds, "steps": self.steps + running, "phases": dict(self.phases)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; inside a step, that starts anew."""
        self._finished, self.steps = float(state["seconds"]), int(state["steps"])
        self.phases = {**dict.fromkeys((*WORK, *ASIDE), 0.0), **state["phases"]}
        if self._started is not None:
            self._started, self._aside = time.perf_counter(), 0.0
