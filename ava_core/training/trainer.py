"""The loop of a training, and what a step of it consists of."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.batch import Batches
from ava_core.training.callbacks import CallbackList, Row
from ava_core.training.callbacks.budget import share_done
from ava_core.training.checkpoints import CheckpointFolder, Restored
from ava_core.training.ema import Ema
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.gradients import Clipper, Guard, Verdict, faulty_gradient, gradient_health
from ava_core.training.history import History
from ava_core.training.memory.out_of_memory import raises_out_of_memory
from ava_core.training.objective import TrainedModel, Validation
from ava_core.training.optimizers import measured_weights
from ava_core.training.regularization import AdaptiveRegularizer
from ava_core.training.schedules import RateSchedule
from ava_core.training.speed.clock import PhaseClock
from ava_core.training.speed.phases import marked

log = logging.getLogger(__name__)
RECENT_STEPS = 20
"""Steps over which a training loss is averaged where it is compared or reported: that of one batch is noise."""
STOP = "stop"
"""Name in checkpoints of the reason to end, if there was one: for the run itself, not for a branch of it."""


@dataclass(kw_only=True)
class Trainer:
    """One training: its parts, how far it is, and `run`.

    Attributes:
        config: the section `train`.
        ranks: this process among those that train together.
        engine: model, objective and optimiser.
        batches: what is trained on.
        validation: what is measured between steps.
        rates, clipper, guard, regularizer, ema: what steers the steps; each has a state that checkpoints keep.
        checkpoints: what a killed training resumes from.
        history: a row of figures per step.
        clock: seconds in steps.
        callbacks: what else happens around a step.
        step: optimiser steps done, skipped ones too.
        tokens_seen: by all ranks.
        startup_seconds: from the start of this process to its first step.
    """

    config: TrainConfig
    ranks: Ranks
    engine: TrainingEngine
    batches: Batches
    validation: Validation
    rates: RateSchedule
    clipper: Clipper
    guard: Guard
    regularizer: AdaptiveRegularizer | None
    ema: Ema | None
    checkpoints: CheckpointFolder
    history: History
    clock: PhaseClock
    callbacks: CallbackList
    step: int = 0
    tokens_seen: int = 0
    startup_seconds: float = 0.0
    _stop_reason: str | None = field(default=None, repr=False)
    _begun: tuple[float, int] = field(default=(0.0, 0), repr=False)

    @property
    def model(self) -> TrainedModel:
        """The model, with the weights that are trained (not their average)."""
        return self.engine.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.engine.device

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks, over the steps that this process has made."""
        seconds, tokens = self.clock.seconds - self._begun[0], self.tokens_seen - self._begun[1]
        return tokens / seconds if seconds > 0 else 0.0

    @property
    def recent_loss(self) -> float:
        """Mean training loss of the last steps, without those whose loss isn't finite: skipped ones."""
        return _finite_mean([row.get("train_loss", math.nan) for row in self.history.rows[-RECENT_STEPS:]])

    def stop(self, reason: str) -> None:
        """End after the present step."""
        self._stop_reason = self._stop_reason or reason

    def run(self, start: Callable[[], Restored] | None = None) -> None:
        """Train to the end, from the run's own last good checkpoint, or else from what `start` loads."""
        self._begin(start)
        self._begun = self.clock.seconds, self.tokens_seen
        self.startup_seconds = time.time() - psutil.Process().create_time()
        self.callbacks.on_start(self)
        try:
            while self.step < self.config.steps and self._stop_reason is None:
                with self.clock.step():
                    row = self._train()
                    if row is not None:
                        self._finish_step(row)
            self.checkpoints.wait()
        finally:
            self.callbacks.on_end(self)
            self.checkpoints.close()
        if self._stop_reason:
            log.info("train: ended at step %d: %s", self.step, self._stop_reason)

    @contextmanager
    def measured_weights(self) -> Iterator[None]:
        """Within it, the model holds the average of the weights if there is one: what is measured and saved."""
        with self.ema.swapped(self.model) if self.ema else measured_weights(self.engine.optimizer):
            yield

    def _begin(self, start: Callable[[], Restored] | None) -> None:
        own = self.checkpoints.restore(self.engine)
        restored = own or (start() if start else None)
        if restored:
            self._load(restored)
            if own or self.step:
                log.info("train: going on %s step %d", "from the checkpoint of" if own else "after", self.step)
        if own:  # killed between its last step and its end: it has nothing left to do
            self._stop_reason = own.parts[STOP]["reason"]
        self._read_history()
        if not own and self.config.guard.policy == "rewind":
            self._save(None)

    def _read_history(self) -> None:
        """The rows up to the present step; the first rank's, for the others may read while it writes."""
        self.history.resume(self.step)
        self.history.rows = self.ranks.broadcast_object(self.history.rows)

    def _train(self) -> Row | None:
        """One optimiser step; None where the guard sent the run back to a checkpoint."""
        passed_over = self.guard.batch_offset
        with marked("data"):
            batch = self.batches.batch(self.step, self.ranks.rank, self.ranks.size, passed_over=passed_over)
        self.rates.set(self.step, self._progress())
        with self._explained(), raises_out_of_memory():
            with self.clock.phase("forward_backward"):
                figures = self.engine.accumulate(batch)
                norm = self.engine.gradient_norm()
            if (self.step + 1) % self.config.evaluate_every == 0 and not self.config.zero_stage:
                figures |= gradient_health(self.model)
            where = None if norm is None or math.isfinite(norm) else faulty_gradient(self.model)
            verdict = self.guard.judge(self.step + 1, figures["train_loss"], norm, where)
            if verdict is Verdict.REWIND:
                self.engine.discard()
                self._rewind()
                return None
            if verdict is Verdict.ACCEPT:
                norm = self._update(norm)
                figures |= self.clipper.figures()
            else:
                self.engine.discard()
        self.tokens_seen += batch.num_tokens * self.ranks.size
        self.step += 1
        # Of the configured rate, whatever the ratios of single groups: Muon's has others before it.
        rate = self.config.learning_rate * self.rates.factor
        row = {"step": self.step, "tokens_seen": self.tokens_seen, **figures, "learning_rate": rate}
        if norm is not None and math.isfinite(norm):  # an update that overflowed was left out
            row["gradient_norm"] = norm
        return row | batch.figures | self.guard.figures()

    def _update(self, norm: float | None) -> float:
        """The optimiser's step, and what follows it; the gradient's norm before clipping."""
        with self.clock.phase("update"), marked("optimiser"):
            norm = self.engine.update(self.clipper.limit(norm))
        if not math.isfinite(norm) and self.config.guard.policy == "stop" and self.config.precision != "fp16":
            # Under ZeRO the norm is known only now; the update was left out.
            raise AvaError(f"step {self.step + 1}: gradient norm is {norm}: lower train.learning_rate")
        self.clipper.observe(norm)
        if self.ema and (self.step + 1) % self.ema.every == 0:  # gathering partitioned weights takes time
            self.ema.update(self.step + 1, self.engine.weights())
        return norm

    def _finish_step(self, row: Row) -> None:
        """Measure, tell the callbacks, write the row, keep a checkpoint."""
        if self.step == self.config.steps:
            self._evaluate(row, whole=True)
        elif self.step % self.config.evaluate_every == 0:
            self._evaluate(row, whole=False)
        with marked("callbacks"):
            self.callbacks.after_step(self, row)
        if self._stop_reason and self.step < self.config.steps:
            row |= self._measure(whole=True)
        self.history.append(row)
        if self._is_checkpoint_due(row):
            self._save(row.get("validation_loss"))

    def _is_checkpoint_due(self, row: Row) -> bool:
        """At its interval and at the end; and where the policy keeps one, whatever the interval."""
        config = self.config
        if self._stop_reason is not None or self.step == config.steps or self.step % config.checkpoint_every == 0:
            return True
        if config.keep_checkpoint_every is not None and self.step % config.keep_checkpoint_every == 0:
            return True
        losses = [past["validation_loss"] for past in self.history.rows if "validation_loss" in past]
        return config.keep_best_checkpoint and "validation_loss" in row and row["validation_loss"] <= min(losses)

    def _evaluate(self, row: Row, *, whole: bool) -> None:
        row |= self._measure(whole=whole)
        self.rates.after_evaluation(row["validation_loss"])
        if self.regularizer:
            past = self.history.rows[-RECENT_STEPS + 1 :]
            losses = [earlier.get("train_loss", math.nan) for earlier in past] + [row["train_loss"]]
            row |= self.regularizer.after_evaluation(row["validation_loss"], _finite_mean(losses))
        self.callbacks.after_evaluation(self, row)

    def _measure(self, *, whole: bool) -> Row:
        with self.clock.phase("evaluation"), marked("evaluation"), self.measured_weights():
            return self.validation.measure(self.model, whole=whole)

    def _progress(self) -> float:
        """Share of the training that is done; by the first rank's clock where time counts."""
        share = share_done(self, self.step)
        return self.ranks.broadcast_object(share) if self.config.max_minutes else share

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteError as error:
            raise AvaError(
                f"step {self.step + 1}: the training {error}: lower train.learning_rate"
                f" (now {self.config.learning_rate:g}) or raise train.warmup_steps"
            ) from error

    def _rewind(self) -> None:
        """Back to the last good checkpoint, with the batches after that of the failed step and a lower rate.

        See `Guard` for the order of calls.
        """
        failed = self.step + 1
        memory, dealt = self.guard.memory(), self.batches.record(failed)
        restored = self.checkpoints.restore(self.engine, lambda step: self.guard.may_restore(step, failed))
        if restored is None:
            raise AvaError(f"step {failed}: no good checkpoint is left to rewind to: lower train.learning_rate")
        self._load(restored)
        self.batches = self.batches.resumed(self.step, dealt)
        self.rates.lower(self.guard.rewound(memory, failed_step=failed, restored_step=self.step))
        self.checkpoints.forget_after(self.step)
        self._read_history()
        log.warning("train: back at step %d, with a lower rate", self.step)

    def _parts(self) -> dict[str, Any]:
        """What has a state, by the name that it has in checkpoints."""
        parts = {
            "rates": self.rates,
            "clipper": self.clipper,
            "guard": self.guard,
            "regularizer": self.regularizer,
            "ema": self.ema,
            "clock": self.clock,
            "callbacks": self.callbacks,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _save(self, validation_loss: float | None) -> None:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        parts[STOP] = {"reason": self._stop_reason}
        with self.clock.phase("checkpoint"), marked("checkpoint"):
            windows = self.batches.record(self.step)
            self.checkpoints.save(self.engine, self.step, parts, validation_loss, self.tokens_seen, windows)

    def _load(self, restored: Restored) -> None:
        self.step = restored.step
        self.tokens_seen = restored.tokens_seen
        self.batches = self.batches.resumed(self.step, restored.windows)
        for name, part in self._parts().items():
            if name in restored.parts:
                part.load_state_dict(restored.parts[name])


def _finite_mean(losses: list[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
