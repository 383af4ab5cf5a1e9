"""The memory of a sweep: an Optuna study in SQLite or PostgreSQL, shared by all who work at it.

A trial of a worker that is gone is given back to be taken again, under the same number and with the same settings:
its training goes on from its last checkpoint. A worker is gone if its process is (on this machine), or if it hasn't
shown a sign of life for `GRACE_SECONDS` by the database's clock.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState

from ava_core.errors import ConfigError, shorten
from ava_core.redaction import redact, redact_address
from ava_core.sweeping.checks import Checked
from ava_core.sweeping.sampling import NumberedSampler, directions_of, distributions, pruner_of, quieten, settings_of
from ava_core.sweeping.storage import BEAT_SECONDS, open_storage, storage_errors

log = logging.getLogger(__name__)
DEFINITION, UID, WORKER, REASON, RESULT = "ava.definition", "ava.uid", "ava.worker", "ava.reason", "ava.result"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        number: in the sweep, from 0.
        settings: values by dotted key of the configuration.
        again: another run of it was killed.
    """

    number: int
    settings: dict[str, Any]
    again: bool
    trial: Trial


class SweepStudy:
    """A sweep in its storage.

    Args:
        storage: address, as `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.
        name: of the sweep.
        checked: its space.
        base: what trials have in common and what must be the same for all workers: digests, by what they are of.

    Raises:
        ConfigError: the address is none, or the storage has another sweep of this name.
        AvaError: the storage can't be reached.
    """

    def __init__(self, storage: str, name: str, checked: Checked, base: Mapping[str, str]) -> None:
        quieten()
        self.address, self.name, self.checked = storage, name, checked
        self._distributions = distributions(checked)
        with self._reached():
            self._storage = open_storage(storage)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=directions_of(checked.space),
                sampler=NumberedSampler(checked),
                pruner=pruner_of(checked.space),
                load_if_exists=True,
            )
            self._settle({**_definition(checked), **base})
            self.uid = str(self._study.user_attrs[UID])

    def claim(self) -> Claim | None:
        """A trial to run: one that was begun, else a new one; None if there are enough."""
        with self._reached():
            self._give_back_abandoned()
            trials = self._study.get_trials(deepcopy=False)
            left = any(trial.state == TrialState.WAITING and trial.number < self.checked.trials for trial in trials)
            if not left and len(trials) >= self.checked.trials:
                return None
            trial = self._study.ask()
            if trial.number >= self.checked.trials:  # another worker took the last one in this moment
                self._give_back(trial._trial_id)
                return None
            again = bool(trial.params)
            trial.set_user_attr(WORKER, _this_worker())
            self._storage.record_heartbeat(trial._trial_id)
            chosen = {key: trial._suggest(key, each) for key, each in self._distributions.items()}
        return Claim(number=trial.number, settings=settings_of(chosen, self.checked), again=again, trial=trial)

    @contextmanager
    def at_work(self, claim: Claim) -> Iterator[None]:
        """Show signs of life while the block runs; if it is interrupted, the trial is to be taken again."""
        ended = threading.Event()
        thread = threading.Thread(target=self._live, args=(claim, ended), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the interruption is what is to be heard of; without this, a moment's wait
                self._give_back(claim.trial._trial_id)
            raise
        finally:
            ended.set()
            thread.join()

    def is_hopeless(self, claim: Claim, step: int, figure: float) -> bool:
        """Remember a figure of a running trial, and ask the pruner. The same step is asked about once only."""
        with self._reached():
            maximize = self.checked.space.goals[0].goal == "maximize"
            # Pruners compare in the direction of the objective; a loss is watched whatever that is.
            claim.trial.report(-figure if maximize else figure, step)
            return claim.trial.should_prune()

    def seen(self, claim: Claim) -> int:
        """The last step that was asked about, by an earlier run of the trial too; -1 if there is none."""
        return max(claim.trial.storage.get_trial(claim.trial._trial_id).intermediate_values, default=-1)

    def complete(self, claim: Claim, values: list[float], result: Mapping[str, Any]) -> None:
        """The trial has finished."""
        with self._reached():
            claim.trial.set_user_attr(RESULT, dict(result))
            self._study.tell(claim.trial, values, skip_if_finished=True)

    def prune(self, claim: Claim, result: Mapping[str, Any]) -> None:
        """The trial was ended early."""
        with self._reached():
            claim.trial.set_user_attr(RESULT, dict(result))
            self._study.tell(claim.trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, claim: Claim, reason: str, result: Mapping[str, Any]) -> None:
        """The trial has failed, for a reason in one line."""
        with self._reached():
            claim.trial.set_user_attr(REASON, redact(reason))
            claim.trial.set_user_attr(RESULT, dict(result))
            self._study.tell(claim.trial, state=TrialState.FAIL, skip_if_finished=True)

    def trials(self) -> list[FrozenTrial]:
        """All trials of the sweep, by number."""
        with self._reached():
            return [trial for trial in self._study.get_trials() if trial.number < self.checked.trials]

    def importances(self) -> dict[str, float]:
        """See `importances_of`."""
        with self._reached():
            return importances_of(self._study)

    def _settle(self, definition: dict[str, Any]) -> None:
        known = self._study.user_attrs.get(DEFINITION)
        if known is None:
            self._study.set_user_attr(DEFINITION, definition)
            self._study.set_user_attr(UID, uuid.uuid4().hex)
            known = self._study.user_attrs[DEFINITION]
        different = [name for name in {**known, **definition} if known.get(name) != definition.get(name)]
        if different:
            name = different[0]
            raise ConfigError(
                f"sweep {self.name} in {redact_address(self.address)}: was begun with another {name}:"
                f" {_short(known.get(name))}, not {_short(definition.get(name))}: give another --name, or another"
                " --storage"
            )

    def _give_back_abandoned(self) -> None:
        stale = set(self._storage._get_stale_trial_ids(self._study._study_id))
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(WORKER)
            if trial._trial_id in stale or (worker and _is_gone(worker)):
                log.info("sweep: trial %d was left unfinished: going on with it", trial.number)
                self._give_back(trial._trial_id)

    def _give_back(self, trial_id: int) -> None:
        self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _live(self, claim: Claim, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(Exception):  # the next one may reach the database
                self._storage.record_heartbeat(claim.trial._trial_id)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        with storage_errors(self.address):
            yield


def importances_of(study: optuna.Study) -> dict[str, float]:
    """How much of the figure's variance each key explains (fANOVA; Hutter et al., 2014), of the first objective.

    Over the finished trials; empty for fewer than three, or where all have the same figure.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 3 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with suppress(ValueError, RuntimeError, ZeroDivisionError):
        return dict(
            optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[0])
        )
    return {}


def _definition(checked: Checked) -> dict[str, Any]:
    """What makes two sweeps the same; the number of trials may grow."""
    values = checked.space.model_dump(mode="json", exclude={"name", "trials", "metric", "objectives", "parameters"})
    values["objectives"] = [goal.model_dump(mode="json") for goal in checked.space.goals]
    for key, parameter in checked.space.parameters.items():
        values[f"parameters.{key}"] = parameter.model_dump(mode="json", exclude_none=True)
    # As the storage gives it back.
    return json.loads(json.dumps(values))


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 80)


def _this_worker() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": _host(), "pid": process.pid, "started": process.create_time()}


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def _is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this machine has ended; of another machine, its heartbeat tells."""
    if worker["host"] != _host():
        return False
    try:
        return abs(psutil.Process(worker["pid"]).create_time() - worker["started"]) > 1.0
    except psutil.Error:
        return True
