"""The gate before `champion`: bounds from the configuration, held against the figures of one evaluation.

Plain comparisons. `mlflow.validate_evaluation_results` compares relative to a baseline as well, but wants MLflow's own
evaluation objects and reports a failure as an exception with a text, while a refusal here is a result with numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ava_core.config.schema import GateConfig
from ava_core.errors import AvaError

FIGURE = "test_bits_per_byte"
# A value exactly at the tolerance passes, whatever the last bit of champion + tolerance is.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One bound and what it was held against.

    Attributes:
        bound: the bound's key under `register.gate`.
        figure: the figure it bounds, in bits per byte.
        value: the candidate's value.
        limit: the largest value that passes.
    """

    bound: str
    figure: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value keeps the bound; NaN doesn't."""
        return self.value <= self.limit + ROUNDING

    def __str__(self) -> str:
        verdict = "passes" if self.passed else f"fails by {self.value - self.limit:.4f}"
        return f"{self.figure} {self.value:.4f}, at most {self.limit:.4f} ({self.bound}): {verdict}"

    def record(self) -> dict[str, str | float | bool]:
        """For registration.json and the audit trail."""
        return {
            "bound": self.bound,
            "figure": self.figure,
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
        }


def decide(
    gate: GateConfig, figures: Mapping[str, float], schemes: Iterable[str], champion: Mapping[str, float] | None
) -> list[Bound]:
    """Hold a candidate against the gate; it may become champion if all bounds passed.

    Args:
        gate: the bounds.
        figures: the candidate's figures.
        schemes: its quantised forms.
        champion: figures of the present champion, or None while there is none.

    Raises:
        AvaError: the evaluation lacks a figure that is bounded, or the champion has none on record.
    """
    value = _figure(figures, FIGURE, "the evaluation")
    if champion is None:
        bounds = [Bound(bound="max_bits_per_byte", figure=FIGURE, value=value, limit=gate.max_bits_per_byte)]
    else:
        limit = _figure(champion, FIGURE, "the present champion") + gate.tolerance_bits_per_byte
        bounds = [Bound(bound="tolerance_bits_per_byte", figure=FIGURE, value=value, limit=limit)]
    for scheme in schemes:
        name = f"{scheme}_{FIGURE}"
        limit = value + gate.max_quantized_increase
        quantized = _figure(figures, name, "the evaluation")
        bounds.append(Bound(bound="max_quantized_increase", figure=name, value=quantized, limit=limit))
    return bounds


def _figure(figures: Mapping[str, float], name: str, owner: str) -> float:
    if name not in figures:
        raise AvaError(f"{owner} has no {name}, which the gate bounds: evaluate it again, or move the alias by hand")
    return figures[name]
