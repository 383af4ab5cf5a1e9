"""What came of a sweep that is queued as experiments of DVC: `ava sweep --via dvc --results`.

DVC shows of an experiment what dvc.yaml calls metrics: each step's key figures, gathered by `pipelines/figures.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna import create_study
from optuna.trial import create_trial

from ava_core.sweeping.checks import Base, Checked
from ava_core.sweeping.dvc import FIGURES, call, find_program, key_figures, trial_settings
from ava_core.sweeping.results import Results, TrialRow, ranked
from ava_core.sweeping.sampling import chosen_of, directions_of, distributions, quieten
from ava_core.sweeping.study import importances_of

STATES = {"failed": "failed", "running": "running", "queued": "queued"}
"""By DVC's; one that has run is complete, and so is one that was fetched from elsewhere."""


def gather_experiments(name: str, base: Base, checked: Checked, dvc: str | None = None) -> Results:
    """Read a sweep's experiments, those that begin at the present commit.

    Args:
        name: of the sweep.
        base: the configuration.
        checked: the space.
        dvc: the program; by default that of this environment.

    Raises:
        ConfigError: the sweep couldn't be queued as it is.
        AvaError: DVC refuses.
    """
    points = list(trial_settings(base, checked))
    experiments = _experiments(json.loads(call([dvc or find_program(), "exp", "show", "--json"])))
    rows = [
        _row(number, settings, experiments[experiment], checked)
        for number, settings in enumerate(points)
        if (experiment := f"{name}-{number:04d}") in experiments
    ]
    space = checked.space
    return Results(
        name=name,
        method=space.method,
        objectives=space.goals,
        keys=list(space.parameters),
        trials=checked.trials,
        rows=ranked(rows, space.goals),
        importances=_importances(rows, checked),
    )


def _experiments(shown: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What `dvc exp show --json` says of each experiment, by its name."""
    return {each["name"]: each for baseline in shown for each in baseline.get("experiments") or () if each.get("name")}


def _row(number: int, settings: dict[str, Any], experiment: Mapping[str, Any], checked: Checked) -> TrialRow:
    state = STATES.get((experiment.get("executor") or {}).get("state", ""), "complete")
    data = experiment["revs"][0].get("data") or {}
    gathered = (data.get("metrics") or {}).get(FIGURES, {}).get("data") or {}
    figures = {
        name: gathered[step][figure]
        for name, (step, figure) in key_figures().items()
        if state == "complete" and figure in gathered.get(step, {})
    }
    names = [goal.name for goal in checked.space.goals]
    reason = ""
    if state == "failed":
        reason = f"`dvc queue logs {experiment['name']}` says why"
    elif state == "complete" and not figures.keys() >= set(names):
        state, reason = "failed", f"its {FIGURES} has no {', '.join(set(names) - figures.keys())}"
    return TrialRow(
        number=number,
        state=state,
        settings=settings,
        values={name: figures[name] for name in names} if state == "complete" else {},
        figures=figures,
        steps=int(figures["steps"]) if "steps" in figures else None,
        seconds=None,
        reason=reason,
        curve={},
    )


def _importances(rows: list[TrialRow], checked: Checked) -> dict[str, float]:
    quieten()
    study = create_study(directions=directions_of(checked.space))
    names = [goal.name for goal in checked.space.goals]
    for row in rows:
        if row.state == "complete":
            study.add_trial(
                create_trial(
                    params=chosen_of(row.settings),
                    distributions=distributions(checked),
                    values=[row.values[name] for name in names],
                )
            )
    return importances_of(study)
