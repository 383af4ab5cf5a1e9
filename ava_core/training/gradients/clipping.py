"""Limits of the gradient norm: constant, or adapted to the recent norms."""

from __future__ import annotations

import math
from typing import Any

from ava_core.config.train import TrainConfig

# The paper's values (arXiv 2504.02507, section 4).
SMOOTHING = 0.97
"""alpha: share of the running mean and variance that stays at each step."""
THRESHOLD = 2.5
"""z_thres: standard deviations above the mean from which a norm is an outlier."""
WARMUP_STEPS = 25
"""Steps whose norms give the first mean and variance; none is an outlier before."""


class Clipper:
    """A constant limit. Order of calls at each step that updates: `limit`, the update, `observe`.

    Args:
        gradient_clip: the largest global norm; 0: no limit.
    """

    def __init__(self, gradient_clip: float) -> None:
        self.constant = gradient_clip if gradient_clip > 0 else math.inf

    def limit(self, norm: float | None) -> float:
        """The largest norm that this step's gradient may have, infinity where there is none. Changes no state.

        Args:
            norm: the gradient's global norm; None where only the update finds it (ZeRO 1 to 3).
        """
        return self.constant

    def observe(self, norm: float) -> None:
        """Take in the norm, before clipping, of a gradient that was applied. Skipped steps are not observed."""

    def figures(self) -> dict[str, float]:
        """Figures for the history, of the last observed step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What later limits depend on, as JSON-able values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class AdaptiveClipper(Clipper):
    """ZClip (arXiv 2504.02507): clips outliers among the recent norms.

    With running mean m and standard deviation s of the norms, z = (norm - m) / s. A norm with z > z_thres is clipped to
    m + s z_thres^2 / z: the further out, the lower ("reciprocal clipping", section 3.3). Statistics take in the clipped
    norm, so that a spike hardly widens them; norms that aren't finite never enter them.

    Where the norm is known only after the update, the limit is m + s z_thres for every norm that exceeds it: the same
    steps are clipped, by less.

    Args:
        gradient_clip: upper bound of every limit, the only one during the warm-up; 0: none.
    """

    def __init__(self, gradient_clip: float) -> None:
        super().__init__(gradient_clip)
        self._first: list[float] = []
        self._mean, self._variance = 0.0, 0.0
        self._limit, self._clipped = math.inf, 0

    def limit(self, norm: float | None) -> float:
        if len(self._first) < WARMUP_STEPS:
            return self.constant
        deviation = math.sqrt(self._variance)
        adaptive = self._mean + THRESHOLD * deviation
        if norm is not None and math.isfinite(norm) and norm > adaptive and deviation > 0:
            z = (norm - self._mean) / deviation
            adaptive = self._mean + deviation * THRESHOLD**2 / z
        return min(self.constant, adaptive)

    def observe(self, norm: float) -> None:
        if not math.isfinite(norm):
            return
        self._limit = self.limit(norm)
        self._clipped += norm > self._limit
        norm = min(norm, self._limit)
        if len(self._first) < WARMUP_STEPS:
            self._first.append(norm)
            self._mean = math.fsum(self._first) / len(self._first)
            self._variance = math.fsum((value - self._mean) ** 2 for value in self._first) / len(self._first)
            return
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * norm
        self._variance = SMOOTHING * self._variance + (1 - SMOOTHING) * (norm - self._mean) ** 2

    def figures(self) -> dict[str, float]:
        """`gradient_limit` where there is one, and `clipped_steps` so far."""
        limit = {"gradient_limit": self._limit} if math.isfinite(self._limit) else {}
        return {**limit, "clipped_steps": float(self._clipped)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": list(self._first),
            "mean": self._mean,
            "variance": self._variance,
            "limit": self._limit if math.isfinite(self._limit) else None,
            "clipped": self._clipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first = list(state["first"])
        self._mean, self._variance = state["mean"], state["variance"]
        self._limit = math.inf if state["limit"] is None else state["limit"]
        self._clipped = state["clipped"]


def build_clipper(config: TrainConfig) -> Clipper:
    """The clipper of `train.clip_mode`."""
    return (AdaptiveClipper if config.clip_mode == "adaptive" else Clipper)(config.gradient_clip)
