"""The result of `ava register`: a version in the registry and the decision about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ava_core.redaction import redact_address
from ava_core.registry.gates.decision import Decision
from ava_core.registry.promotion import Outcome
from ava_core.registry.versions import CHAMPION
from ava_core.tracking import model_url, run_url

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A registered version, its aliases and the decision about it.

    Attributes:
        name: the registered model.
        version: its version.
        aliases: the aliases that the version holds.
        champion: the version that is champion; None if there is none.
        outcome: the decision at the promotion.
        given: what `ava gate` had decided before; None if it wasn't asked.
        run_id: the MLflow run.
        experiment_id: the run's experiment.
        logged_model_id: MLflow's id of the model.
        tracking_uri: the server's address, without credentials.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    champion: int | None
    outcome: Outcome
    given: Decision | None
    run_id: str
    experiment_id: str
    logged_model_id: str
    tracking_uri: str

    @property
    def promoted(self) -> bool:
        """Whether the gate let it through and it is champion, by the aliases read after the last write."""
        return self.outcome.promoted and CHAMPION in self.aliases

    @property
    def metrics(self) -> dict[str, float]:
        """The step's figures."""
        return {"promoted": float(self.promoted), "model_version": float(self.version)}

    def record(self) -> dict[str, Any]:
        """The contents of registration.json."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "promoted": self.promoted,
            "champion": self.champion,
            "decision": [bound.record() for bound in self.outcome.bounds],
            "previous_champion": self.outcome.previous,
            "gate": {"passed": self.given.passed, "champion": self.given.champion} if self.given else None,
            "model_uri": f"models:/{self.name}/{self.version}",
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "logged_model_id": self.logged_model_id,
            "run_url": run_url(self.tracking_uri, self.experiment_id, self.run_id),
            "model_url": model_url(self.tracking_uri, self.name, self.version),
            "tracking_uri": redact_address(self.tracking_uri),
        }

    def report(self) -> None:
        """Log each bound and the outcome."""
        outcome = self.outcome
        against = f"compared with version {outcome.previous}" if outcome.previous else "no champion so far"
        for bound in outcome.bounds:
            (log.info if bound.passed else log.warning)("gate: %s", bound)
        if outcome.promoted and not self.promoted:
            log.warning(
                "%s: version %d had passed the gate (%s), but the champion is version %s by now, and stays it:"
                " move the alias by hand if it shall not be",
                self.name,
                self.version,
                against,
                self.champion,
            )
        elif outcome.promoted:
            log.info(
                "%s: version %d passed the gate (%s); aliases: %s",
                self.name,
                self.version,
                against,
                ", ".join(self.aliases),
            )
        else:
            log.warning("%s: version %d is registered and not promoted (%s)", self.name, self.version, against)
        if CHAMPION in self.aliases and not outcome.promoted:
            log.warning(
                "%s: version %d is champion by an earlier decision at other bounds, and stays it:"
                " move the alias by hand if it shall not be",
                self.name,
                self.version,
            )
