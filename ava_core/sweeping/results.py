"""What came out of a sweep: its trials, best first, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ava_core.sweeping.sampling import settings_of
from ava_core.sweeping.space import ObjectiveConfig
from ava_core.sweeping.study import REASON, RESULT, SweepStudy

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "interrupted",
}
_ORDER = [*STATES.values(), "queued"]
"""States as rows are ordered by them; queued are experiments of DVC alone."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial.

    Attributes:
        number: from 0.
        state: complete, pruned, failed, running, interrupted (it goes on when the sweep does), or with DVC queued.
        settings: by dotted key; of a trial that was interrupted before it had any, empty.
        values: of the objectives, by name; of a pruned trial the last figure on the validation split, if that is one.
        figures: all figures of a finished trial.
        steps: of its training.
        seconds: that it took, over all attempts that ended by themselves.
        reason: why it failed.
        curve: step -> figure on the validation split that the pruner saw.
        on_front: no other trial is better in one objective and at least as good in the others.
    """

    number: int
    state: str
    settings: dict[str, Any]
    values: dict[str, float]
    figures: dict[str, float]
    steps: int | None
    seconds: float | None
    reason: str
    curve: dict[int, float]
    on_front: bool = False


@dataclass(frozen=True, kw_only=True)
class Results:
    """A sweep so far.

    Attributes:
        name: of the sweep.
        method: how trials are chosen.
        objectives: what is looked for.
        keys: what is varied.
        trials: how many there are to be.
        rows: the trials, best first: complete ones by the first objective, then the others by number.
        importances: share of the first objective's variance that a key explains.
    """

    name: str
    method: str
    objectives: Sequence[ObjectiveConfig]
    keys: Sequence[str]
    trials: int
    rows: Sequence[TrialRow]
    importances: Mapping[str, float]

    @property
    def best(self) -> TrialRow | None:
        """The best by the first objective; None as long as no trial is complete."""
        return self.rows[0] if self.rows and self.rows[0].state == "complete" else None

    def counts(self) -> dict[str, int]:
        """Trials by state, those that there are."""
        found = {state: sum(row.state == state for row in self.rows) for state in _ORDER}
        return {state: count for state, count in found.items() if count}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "method": self.method,
            "objectives": [goal.model_dump() for goal in self.objectives],
            "parameters": list(self.keys),
            "trials": self.trials,
            "states": self.counts(),
            "best": self.best.number if self.best else None,
            "front": [row.number for row in self.rows if row.on_front],
            "importances": dict(self.importances),
            "rows": [asdict(row) for row in self.rows],
        }


def gather(study: SweepStudy, *, importances: bool = True) -> Results:
    """Read a sweep's trials from its storage.

    Args:
        study: the sweep.
        importances: compute them, which takes seconds.
    """
    space = study.checked.space
    return Results(
        name=study.name,
        method=space.method,
        objectives=space.goals,
        keys=list(space.parameters),
        trials=study.checked.trials,
        rows=ranked([_row(trial, study) for trial in study.trials()], space.goals),
        importances=study.importances() if importances else {},
    )


def ranked(rows: Sequence[TrialRow], goals: Sequence[ObjectiveConfig]) -> list[TrialRow]:
    """Trials as `Results` has them: the best first, and told which are on the front."""
    front = _front([row for row in rows if row.state == "complete"], goals)
    marked = (replace(row, on_front=row.number in front) for row in rows)
    return sorted(marked, key=lambda row: _rank(row, goals))


def _row(trial: FrozenTrial, study: SweepStudy) -> TrialRow:
    space = study.checked.space
    result = trial.user_attrs.get(RESULT, {})
    state = STATES[trial.state]
    complete = all(key in trial.params for key in space.parameters)
    sign = -1.0 if space.goals[0].goal == "maximize" else 1.0
    values = dict(zip((goal.name for goal in space.goals), trial.values or (), strict=False))
    curve = {step: sign * value for step, value in sorted(trial.intermediate_values.items())}
    if state == "pruned":  # Optuna's value is the watched figure, whatever the objective is
        watched = space.goals[0].name == "validation_bits_per_byte"
        values = {space.goals[0].name: curve[max(curve)]} if watched and curve else {}
    return TrialRow(
        number=trial.number,
        state=state,
        settings=settings_of(trial.params, study.checked) if complete else {},
        values=values,
        figures=dict(result.get("figures", {})),
        steps=int(result["steps"]) if result.get("steps") is not None else (max(curve) if curve else None),
        seconds=result.get("seconds"),
        reason=str(trial.user_attrs.get(REASON, "")),
        curve=curve,
    )


def _rank(row: TrialRow, goals: Sequence[ObjectiveConfig]) -> tuple[int, float, int]:
    first = row.values.get(goals[0].name, 0.0) if row.state in ("complete", "pruned") else 0.0
    return _ORDER.index(row.state), first if goals[0].goal == "minimize" else -first, row.number


def _front(rows: Sequence[TrialRow], goals: Sequence[ObjectiveConfig]) -> set[int]:
    """Numbers of the trials that no other dominates (Pareto); of one objective, the best."""
    costs = {
        row.number: [row.values[goal.name] * (1 if goal.goal == "minimize" else -1) for goal in goals] for row in rows
    }
    return {
        number
        for number, mine in costs.items()
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in costs.values())
    }
