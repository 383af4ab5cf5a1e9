"""What is done about a step whose loss or gradient isn't finite, or whose loss spikes."""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.config.train_sections import GuardConfig
from ava_core.errors import AvaError

log = logging.getLogger(__name__)
LEAST_DEVIATION = 1e-3
"""Least standard deviation, as a share of the mean: beside a constant loss every change would be a spike."""


class Verdict(StrEnum):
    """What to do with a step: make its update, leave that out, or go back to a checkpoint."""

    ACCEPT = "accept"
    SKIP = "skip"
    REWIND = "rewind"


class Guard:
    """Judges every step before its update, and counts skipped steps and rewinds.

    A spike is a loss above mean + `spike_deviations` x standard deviation of the last `window` losses, once half of
    the window is filled. What keeps these two sound: only accepted losses enter, so one spike can't hide the next;
    they come from a window, so the fall of a loss early in training is forgotten (while it falls, the trend widens
    the deviation and the guard is slower to act, never faster); and a deviation counts as at least a thousandth of the
    mean. Under `stop` a spike is only warned of; its loss enters, for its update was made.

    Calls of the trainer, where `step` counts from 1 and `done = step - 1` steps were made before it:

        batch = batches.batch(done + guard.batch_offset)      # schedules and curricula go by `done` alone
        verdict = guard.judge(step, loss, norm)
        # "skip": throw the gradients away, make no update; the step counts
        # "rewind":
        memory = guard.memory()                               # before the state is overwritten
        done = checkpoints.restore(engine, lambda at: guard.may_restore(at, step))
        factor = guard.rewound(memory, failed_step=step, restored_step=done)
        rates.lower(factor)                                   # after the rates' own state was restored

    Checkpoints with a higher step than the restored one must be deleted: they belong to the abandoned branch, and a
    killed run would resume from them. Before the first step of a run with the policy `rewind` a checkpoint of step 0
    must be written, or a failure before the first one has nothing to go back to.

    Which checkpoint is good: they are written after accepted steps only, but weights can go bad in the very update
    that one follows. So a checkpoint is proven only when the step after it was accepted too, and it serves one rewind:
    if the run fails again before a newer one is proven, the one before it is taken (see `may_restore`).

    After a kill everything repeats from the state of the checkpoint: the same events at the same steps.

    Args:
        config: the section `train.guard`.
        loss_scaling: an infinite gradient norm is left to the loss scaler (fp16), which skips the update and lowers
            its scale.
    """

    def __init__(self, config: GuardConfig, *, loss_scaling: bool = False) -> None:
        self.config = config
        self.loss_scaling = loss_scaling
        self.batch_offset = 0
        """Batches that rewinds have skipped: add it to the number of steps done to get the index of the next batch."""
        self._recent: deque[float] = deque(maxlen=config.window)
        self._skipped, self._rewinds = 0, 0
        self._used: list[int] = []

    def judge(self, step: int, loss: float, norm: float | None, where: str | None = None) -> Verdict:
        """What to do with a step, before its update. The same on all ranks, given figures that are means over them.

        Args:
            step: counts from 1.
            loss: the step's training loss.
            norm: the global norm of its gradient; None where only the update finds it.
            where: name of the parameter whose gradient is at fault, where it is known.

        Raises:
            AvaError: there have been `max_events` events before this one; or, under `stop`, the loss is finite and
                the gradient isn't. (A loss that isn't ends the run in the engine, which names the layer.)
        """
        fault = self._fault(loss, norm)
        if fault is None:
            self._recent.append(loss)
            return Verdict.ACCEPT
        policy = self.config.policy
        if policy == "stop":
            if not math.isfinite(loss):
                return Verdict.ACCEPT
            if norm is not None and not self._is_finite(norm):
                origin = f" (in {where})" if where else ""
                raise AvaError(
                    f"step {step}: {fault}{origin}: lower train.learning_rate, or set train.guard.policy to skip"
                )
            log.warning("step %d: %s", step, fault)
            self._recent.append(loss)
            return Verdict.ACCEPT
        if self._skipped + self._rewinds >= self.config.max_events:
            raise AvaError(
                f"step {step}: {fault}: there were {self.config.max_events} such events under guard.policy = {policy}"
                f" already (guard.max_events): lower train.learning_rate, or raise train.warmup_steps"
            )
        log.warning("step %d: %s: %s", step, fault, "no update" if policy == "skip" else "back to a good checkpoint")
        self._skipped += policy == "skip"
        return Verdict(policy)

    def may_restore(self, checkpoint_step: int, failed_step: int) -> bool:
        """Whether a rewind from `failed_step` may take the checkpoint of `checkpoint_step` steps done.

        Step `failed_step` was the one after checkpoint `failed_step - 1`, which is thereby unproven. Fresh weights,
        step 0, are always good.
        """
        return checkpoint_step == 0 or (checkpoint_step < failed_step - 1 and checkpoint_step not in self._used)

    def memory(self) -> dict[str, Any]:
        """What a rewind must not forget: the counts, the offset, the checkpoints that were used."""
        state = self.state_dict()
        del state["recent"]
        return state

    def rewound(self, memory: dict[str, Any], *, failed_step: int, restored_step: int) -> float:
        """After the checkpoint was loaded, this guard's own state from it too: count the rewind and skip its batches.

        Args:
            memory: what `memory` gave before the checkpoint was loaded.
            failed_step: the step that was judged, from 1.
            restored_step: steps done in the checkpoint.

        Returns:
            The factor for `RateSchedule.lower`: `lower_rate` for each rewind that the restored rates don't know of.
        """
        known = self._rewinds
        self.load_state_dict({**self.state_dict(), **memory})
        self._rewinds += 1
        # The batch of the failed step had the index failed_step - 1 + offset; the next one is the first after it.
        self.batch_offset += failed_step - restored_step
        # Later checkpoints of the same number will be other ones.
        self._used = [*(step for step in self._used if step < restored_step), restored_step]
        return self.config.lower_rate ** (self._rewinds - known)

    def figures(self) -> dict[str, float]:
        """`skipped_steps` and `rewinds` so far, each where the policy makes it possible."""
        counts = {"skip": {"skipped_steps": float(self._skipped)}, "rewind": {"rewinds": float(self._rewinds)}}
        return counts.get(self.config.policy, {})

    def state_dict(self) -> dict[str, Any]:
        """JSON-able values; part of every checkpoint."""
        return {
            "recent": list(self._recent),
            "skipped": self._skipped,
            "rewinds": self._rewinds,
            "batch_offset": self.batch_offset,
            "used": list(self._used),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._recent = deque(state["recent"], maxlen=self.config.window)
        self._skipped, self._rewinds = state["skipped"], state["rewinds"]
        self.batch_offset, self._used = state["batch_offset"], list(state["used"])

    def _fault(self, loss: float, norm: float | None) -> str | None:
        """What is wrong with a step, for messages; None: nothing."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if norm is not None and not self._is_finite(norm):
            return f"gradient norm is {norm}"
        if self.config.spike_deviations is None or 2 * len(self._recent) < self.config.window:
            return None
        mean = math.fsum(self._recent) / len(self._recent)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._recent) / len(self._recent))
        bound = mean + self.config.spike_deviations * max(deviation, LEAST_DEVIATION * abs(mean))
        if loss <= bound:
            return None
        return f"loss is {loss:.4g}, above {bound:.4g}, the bound by the last {len(self._recent)} losses"

    def _is_finite(self, norm: float) -> bool:
        return math.isfinite(norm) or self.loss_scaling


@torch.no_grad()
def faulty_gradient(model: nn.Module) -> str | None:
    """Name of the first parameter whose gradient holds nan or infinity; None if none does."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return name
    return None


@torch.no_grad()
def gradient_health(model: nn.Module) -> dict[str, float]:
    """Statistics of the gradients that `model` holds, for the history at steps that evaluate.

    Returns:
        zero_gradients, non_finite_gradients: shares of all entries.
        gradient_norm_ratio: the largest norm of a decoder layer's gradient over the smallest; of finite ones, where
            there are several and none is 0. A ratio that grows says that depth is trained unevenly.
        {} if no parameter holds a gradient.
    """
    entries, zeros, faults = 0, 0, 0
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if grad is None:
            continue
        entries += grad.numel()
        zeros += int((grad == 0).sum())
        faults += int((~grad.isfinite()).sum())
        if (layer := re.search(r"(?:^|\.)layers\.(\d+)\.", name)) is not None:
            squares[layer[1]] = squares.get(layer[1], 0) + torch.linalg.vector_norm(grad, dtype=torch.float32) ** 2
    if not entries:
        return {}
    norms = [math.sqrt(float(square)) for square in squares.values()]
    ratio = {}
    if len(norms) > 1 and all(math.isfinite(norm) and norm > 0 for norm in norms):
        ratio = {"gradient_norm_ratio": max(norms) / min(norms)}
    return {"zero_gradients": zeros / entries, "non_finite_gradients": faults / entries, **ratio}
