"""The decision before `champion`: bounds from the configuration, held against the figures of one evaluation.

The only place that decides: `ava gate` and the promotion of `ava register` both call `decide`.

Plain comparisons. `mlflow.validate_evaluation_results` compares relative to a baseline as well, but wants MLflow's own
evaluation objects and reports a failure as an exception with a text, while a refusal here is a result with numbers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.register import GateConfig, RegisterConfig
from ava_core.errors import AvaError, IntegrityError
from ava_core.registry.candidate import Candidate
from ava_core.registry.versions import Version
from ava_core.runtime.digests import digest_value

log = logging.getLogger(__name__)
NAME = "decision.json"
FIGURE = "test_bits_per_byte"
TEST_BYTES = "test_bytes"
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

    @property
    def margin(self) -> float:
        """How far the value is below the limit; negative where it is above."""
        return self.limit - self.value

    def __str__(self) -> str:
        verdict = "passes" if self.passed else f"fails by {-self.margin:.4f}"
        return f"{self.figure} {self.value:.4f}, at most {self.limit:.4f} ({self.bound}): {verdict}"

    def record(self) -> dict[str, str | float | bool]:
        """For decision.json, registration.json and the audit trail."""
        return {
            "bound": self.bound,
            "figure": self.figure,
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a candidate may become champion, and what of.

    Attributes:
        model_name: the registered model.
        evaluation: digest of the evaluation that the decision is about.
        gate: digest of the bounds as they were configured.
        champion: the version that the candidate was compared with; None while there was none.
        bounds: each bound with the value held against it.
    """

    model_name: str
    evaluation: str
    gate: str
    champion: int | None
    bounds: list[Bound]

    @property
    def passed(self) -> bool:
        """Whether all bounds hold."""
        return all(bound.passed for bound in self.bounds)

    @property
    def failed(self) -> list[Bound]:
        """The bounds that don't hold."""
        return [bound for bound in self.bounds if not bound.passed]

    def record(self) -> dict[str, Any]:
        """The contents of decision.json."""
        return {
            "model_name": self.model_name,
            "evaluation": self.evaluation,
            "gate": self.gate,
            "champion": self.champion,
            "bounds": [bound.record() for bound in self.bounds],
            "passed": self.passed,
        }


def decide(config: RegisterConfig, candidate: Candidate, champion: Version | None) -> Decision:
    """Hold a candidate against the gate, given the present champion, or None while there is none.

    Raises:
        AvaError: the evaluation lacks a figure that is bounded, or the champion has none on record.
    """
    _warn_of_another_text(candidate, champion)
    figures = champion.figures if champion else None
    return Decision(
        model_name=config.model_name,
        evaluation=candidate.digest,
        gate=gate_digest(config.gate),
        champion=champion.version if champion else None,
        bounds=check_bounds(config.gate, candidate.figures, candidate.quantized, figures),
    )


def check_bounds(
    gate: GateConfig, figures: Mapping[str, float], schemes: Iterable[str], champion: Mapping[str, float] | None
) -> list[Bound]:
    """Hold figures against the bounds; all must pass.

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


def gate_digest(gate: GateConfig) -> str:
    """Digest of the bounds: a decision is on record for these very ones."""
    return digest_value(gate.model_dump(mode="json"))


def bounds_from(records: Iterable[Mapping[str, Any]]) -> list[Bound]:
    """The bounds that `Bound.record` gave."""
    return [Bound(**{key: value for key, value in record.items() if key != "passed"}) for record in records]


def read_decision(folder: Path, config: RegisterConfig, candidate: Candidate) -> Decision:
    """The decision of `ava gate` about this candidate at these bounds.

    Raises:
        AvaError: it is about something else.
        IntegrityError: it can't be read.
    """
    path = folder / NAME
    try:
        record = json.loads(path.read_text())
        names = ("model_name", "evaluation", "gate", "champion")
        decision = Decision(**{name: record[name] for name in names}, bounds=bounds_from(record["bounds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"{path}: can't be read ({reason}): run `ava gate` again") from error
    for about, given, wanted in (
        ("another evaluation", decision.evaluation, candidate.digest),
        (f"the registered model {decision.model_name}", decision.model_name, config.model_name),
        ("other bounds", decision.gate, gate_digest(config.gate)),
    ):
        if given != wanted:
            raise AvaError(
                f"{path}: is about {about}: run `ava gate` with the parameters and the --evaluation given here"
            )
    return decision


def _figure(figures: Mapping[str, float], name: str, owner: str) -> float:
    if name not in figures:
        raise AvaError(f"{owner} has no {name}, which the gate bounds: evaluate it again, or move the alias by hand")
    return figures[name]


def _warn_of_another_text(candidate: Candidate, champion: Version | None) -> None:
    ours = candidate.corpus.get(TEST_BYTES)
    theirs = champion.figures.get(TEST_BYTES, ours) if champion else ours
    if champion is not None and ours != theirs:
        log.warning(
            "gate: the champion, version %d, was measured on another test text (%.0f bytes, here %.0f):"
            " comparing the two means little",
            champion.version,
            theirs or 0,
            ours or 0,
        )
