"""Paired bootstrap over the units of a text (Efron 1979; for paired comparisons Koehn 2004, W04-3250).

A figure is a ratio of sums over the text, such as nats over bytes. A resample draws as many units as there are, with
replacement, and sums them for all models alike: what makes a document hard makes it so for every model and cancels in
the difference. The interval lies between the quantiles of the resampled differences.

Its coverage needs many units: see MIN_UNITS and MIN_DOCUMENTS in `matching`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
"""The ends of a 95 % interval are then known to about 2 % of its width."""
SEED = 1337
CHUNK_CELLS = 2**22


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that follows from sums over units.

    Attributes:
        top: the sum above the line: nats, correct or top5.
        below: the sum below it: bytes or tokens.
        lower_is_better: which direction is good.
        of_ratio: makes the figure of the ratio.
    """

    top: str
    below: str
    lower_is_better: bool
    of_ratio: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio


FIGURES = {
    "test_bits_per_byte": Figure("nats", "bytes", True, lambda ratio: ratio / math.log(2)),
    "test_loss": Figure("nats", "tokens", True),
    "test_perplexity": Figure("nats", "tokens", True, np.exp),
    "test_accuracy": Figure("correct", "tokens", False),
    "test_top5_accuracy": Figure("top5", "tokens", False),
}
"""Those of the evaluation that have a value on every document. `config.gate.PER_DOCUMENT` names them too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A model's figure less the base's.

    Attributes:
        value: on the text as it is.
        low, high: ends of its interval; None where the text has too few units for one.
    """

    value: float
    low: float | None
    high: float | None

    def verdict(self, lower_is_better: bool, margin: float = 0.0) -> str:
        """`better` or `worse` if the whole interval lies on that side, `equal` if it is 0 alone, else `unclear`.

        Args:
            lower_is_better: which direction is good.
            margin: how much worse than the base still counts as equal to it.
        """
        if self.low is None or self.high is None:
            return "too little text"
        if self.low == self.high == margin == 0:
            return "equal"
        low, high = (self.low, self.high) if lower_is_better else (-self.high, -self.low)
        return "worse" if low > margin else "better" if high < margin else "unclear"


def resampled_sums(values_NK: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sums of each column over resampled rows, float64 of shape (resamples, K).

    Args:
        values_NK: N units, K columns.
        resamples: how often N units are drawn.
        seed: the same seed and N draw the same units.
    """
    units = len(values_NK)
    generator = np.random.Generator(np.random.Philox(seed))
    chunk = max(1, CHUNK_CELLS // units)
    sums = np.empty((resamples, values_NK.shape[1]))
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        drawn = generator.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=rows * units).reshape(rows, units)
        sums[first : first + rows] = counts @ values_NK
    return sums


def interval(differences: np.ndarray, significance: float) -> tuple[float, float]:
    """Ends of the two-sided interval with confidence 1 - significance: quantiles of resampled differences.

    To 12 digits: the last bits of a product depend on the threads that made it.
    """
    low, high = np.quantile(differences, [significance / 2, 1 - significance / 2])
    return float(f"{low:.12g}"), float(f"{high:.12g}")
