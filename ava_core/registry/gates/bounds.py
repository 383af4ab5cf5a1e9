"""Bounds of the configuration, held against the figures of one evaluation and of the present champion.

Plain comparisons. `mlflow.validate_evaluation_results` can't say what these do: its `MetricThreshold` asks for an
improvement over a baseline and refuses a tolerance (`min_absolute_change` must be positive), has one threshold per
figure, compares with no other figure of the same model, and reports a refusal as an exception's text, while here it is
a result with numbers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ava_core.config.gate import CHAMPION, EACH_SCHEME, BoundConfig
from ava_core.errors import AvaError

if TYPE_CHECKING:
    from ava_core.registry.gates.significance import Evidence

# A value exactly at the limit passes, whatever the last bit of champion + tolerance is.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One bound and what it was held against.

    Attributes:
        bound: its name, a key under `register.gate`.
        figure: the figure that it bounds.
        value: the candidate's value.
        limit: the largest value that passes, or the smallest.
        at_least: the limit is the smallest.
        significance: 1 less the confidence of the interval; None for a plain comparison.
        low, high: ends of the interval of value less limit.
        must_be_better: the whole interval must lie on the right side; else it must not lie wholly on the wrong one.
    """

    bound: str
    figure: str
    value: float
    limit: float
    at_least: bool = False
    significance: float | None = None
    low: float | None = None
    high: float | None = None
    must_be_better: bool = False

    @property
    def side(self) -> str:
        """Which values pass: those `at most` or `at least` as large as the limit."""
        return "at least" if self.at_least else "at most"

    @property
    def passed(self) -> bool:
        """Whether the value keeps the bound; NaN doesn't. What must be better isn't so by being equal."""
        return self.margin > ROUNDING if self.must_be_better else self.margin >= -ROUNDING

    @property
    def margin(self) -> float:
        """How far the value is on the right side of the limit, in the figure's unit; negative if it is on the other.

        With significance: how far that end of the interval is which decides.
        """
        if self.low is None or self.high is None:
            return self.value - self.limit if self.at_least else self.limit - self.value
        better, worse = (self.high, self.low) if self.at_least else (-self.low, -self.high)
        return worse if self.must_be_better else better

    @property
    def interval(self) -> str:
        """The interval of value less limit, in words; empty without one."""
        if self.low is None or self.high is None or self.significance is None:
            return ""
        return f"{self.low:+.4f} to {self.high:+.4f} ({100 * (1 - self.significance):.4g}%)"

    def __str__(self) -> str:
        verdict = "passes" if self.passed else f"fails by {shown(-self.margin)}"
        if self.interval:
            verdict += f", the difference to it being {self.interval}"
        return f"{self.figure} {shown(self.value)}, {self.side} {shown(self.limit)} ({self.bound}): {verdict}"

    def record(self) -> dict[str, str | float | bool]:
        """For decision.json, registration.json and the audit trail, where `at_least` stands only if it is true."""
        record: dict[str, str | float | bool] = {
            "bound": self.bound,
            "figure": self.figure,
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
        }
        if self.at_least:
            record["at_least"] = True
        if self.must_be_better:
            record["must_be_better"] = True
        if self.significance is not None and self.low is not None and self.high is not None:
            record |= {"significance": self.significance, "low": self.low, "high": self.high}
        return record


def bounds_from(records: Iterable[Mapping[str, Any]]) -> list[Bound]:
    """The bounds that `Bound.record` gave."""
    return [Bound(**{key: value for key, value in record.items() if key != "passed"}) for record in records]


def shown(value: float) -> str:
    """Four decimals, or three digits of what they would show as zero."""
    return f"{value:.3g}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"


def check_bounds(
    gate: Mapping[str, BoundConfig],
    figures: Mapping[str, float],
    schemes: Iterable[str],
    champion: Mapping[str, float] | None,
    evidence: Evidence | None = None,
) -> list[Bound]:
    """Hold figures against the bounds that apply; all must pass.

    Args:
        gate: the bounds by name.
        figures: the candidate's figures.
        schemes: its quantised forms.
        champion: figures of the present champion, or None while there is none.
        evidence: losses by document, for the bounds with significance; without it, they compare plainly.

    Raises:
        AvaError: the candidate lacks a figure that is bounded, or the champion has none on record.
    """
    present = list(schemes)
    return [
        _with_interval(_check(name, bound, figure, reference, figures, champion), bound, reference, evidence)
        for name, bound in gate.items()
        if _applies(bound, champion is not None)
        for figure, reference in _forms(bound, present)
    ]


def bounded_figures(gate: Mapping[str, BoundConfig], schemes: Iterable[str]) -> set[str]:
    """Names of all figures that the bounds look at, whether or not there is a champion."""
    present = list(schemes)
    pairs = [pair for bound in gate.values() if bound.enabled for pair in _forms(bound, present)]
    return {name for pair in pairs for name in pair if isinstance(name, str) and name != CHAMPION}


def _applies(bound: BoundConfig, has_champion: bool) -> bool:
    return bound.enabled and not (bound.only_without_champion if has_champion else bound.to_champion)


def _forms(bound: BoundConfig, schemes: Iterable[str]) -> Iterator[tuple[str, float | str]]:
    """Figure and reference of a bound, or of each quantised model if it bounds those."""
    if not bound.figure.startswith(EACH_SCHEME):
        yield bound.figure, bound.reference
        return
    for scheme in schemes:
        reference = bound.reference
        yield _of(scheme, bound.figure), _of(scheme, reference) if isinstance(reference, str) else reference


def _of(scheme: str, name: str) -> str:
    return f"{scheme}_{name.removeprefix(EACH_SCHEME)}" if name.startswith(EACH_SCHEME) else name


def _check(
    name: str,
    bound: BoundConfig,
    figure: str,
    reference: float | str,
    figures: Mapping[str, float],
    champion: Mapping[str, float] | None,
) -> Bound:
    at_least = bound.at_least is not None
    value = _figure(figures, figure, "the evaluation", name)
    if bound.to_champion:
        reference = _figure(champion or {}, figure, "the present champion", name)
    elif isinstance(reference, str):
        reference = _figure(figures, reference, "the evaluation", name)
    limit = reference - bound.tolerance if at_least else reference + bound.tolerance
    return Bound(
        bound=name, figure=figure, value=value, limit=limit, at_least=at_least, must_be_better=bound.must_be_better
    )


def _with_interval(plain: Bound, bound: BoundConfig, reference: float | str, evidence: Evidence | None) -> Bound:
    """The same with the interval of its difference, where it asks for significance and there is one."""
    if bound.significance is None or evidence is None:
        return plain
    other = None if bound.to_champion else str(reference)
    found = evidence.difference(plain.bound, plain.figure, other, bound.significance)
    if found is None or found.low is None or found.high is None:
        return plain
    shift = bound.tolerance if plain.at_least else -bound.tolerance
    return replace(plain, significance=bound.significance, low=found.low + shift, high=found.high + shift)


def _figure(figures: Mapping[str, float], name: str, owner: str, bound: str) -> float:
    if name not in figures:
        close = difflib.get_close_matches(name, figures, n=1, cutoff=0.9)
        meant = f"did you mean {close[0]}? If not, " if close else ""
        raise AvaError(
            f"{owner} has no {name}, which the gate bounds: {meant}evaluate it again, or move the alias by hand, or"
            f" decide without that bound (--set register.gate.{bound}.enabled=false)"
        )
    return figures[name]
