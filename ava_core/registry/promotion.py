"""The aliases: `challenger` is the newest candidate, `champion` the version that the gate let through.

MLflow writes an alias without asking what it was and keeps no history. So the holder is read right before and after the
write, and each decision stays as tags on the version that it was about: the bounds, the version replaced, the outcome.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ava_core.errors import AvaError
from ava_core.registry.gates.bounds import Bound, bounds_from
from ava_core.registry.gates.decision import Decision
from ava_core.registry.versions import (
    CHALLENGER,
    CHAMPION,
    GATE,
    PROMOTED,
    Version,
    describe,
    read_aliases,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The decision about a version, as it took effect.

    Attributes:
        promoted: whether it was made champion.
        bounds: the bounds it was held against.
        previous: the champion it was compared with, or None.
    """

    promoted: bool
    bounds: list[Bound]
    previous: int | None


def read_outcome(version: Version, gate_digest: str) -> Outcome | None:
    """The outcome that is on record for this version at this very gate; None if it is still to be decided.

    What couldn't be compared, for the champion was measured on another text, is asked again: by now it may be.
    """
    record = _record(version)
    if record.get("gate") != gate_digest or PROMOTED not in version.tags or record.get("other_text"):
        return None
    return Outcome(
        promoted=version.tags[PROMOTED] == "true",
        bounds=bounds_from(record["bounds"]),
        previous=record["previous_champion"],
    )


def champion_to_beat(client: MlflowClient, name: str, version: int | None) -> Version | None:
    """The champion that a candidate is compared with; None while there is none.

    Args:
        client: client of the registry.
        name: the registered model.
        version: the candidate's version, if it has one.
    """
    aliases = read_aliases(client, name)
    if CHAMPION not in aliases:
        return None
    champion = _read(client, name, aliases[CHAMPION], aliases)
    if champion.version != version:
        return champion
    # A call that was killed had moved the alias already; the champion before it is in the version's tags.
    previous = _record(champion).get("previous_champion")
    return _read(client, name, previous, {}) if previous else None


def why_no_champion(client: MlflowClient, name: str) -> str:
    """One line: why a registered model has no champion, and which alias can be used instead."""
    aliases = read_aliases(client, name)
    if CHALLENGER not in aliases:
        return f"{name} has no champion: `make pipeline-local` trains and registers one"
    challenger = _read(client, name, aliases[CHALLENGER], aliases)
    instead = f"use models:/{name}@{CHALLENGER}"
    refused = [bound for bound in bounds_from(_record(challenger).get("bounds", ())) if not bound.passed]
    if not refused:
        return f"{name} has no champion, though the gate let version {challenger.version} through: {instead}"
    bounds = ", ".join(map(str, refused))
    keys = ", ".join(dict.fromkeys(f"register.gate.{bound.bound}" for bound in refused))
    return (
        f"{name} has no champion: the gate refused version {challenger.version}: {bounds}: {instead}, or widen {keys}"
        " and register again"
    )


def promote(
    client: MlflowClient,
    name: str,
    version: int,
    decide: Callable[[Version | None], Decision],
    given: Decision | None = None,
) -> Outcome:
    """Make a version `challenger`, decide about it against the champion, and make it `champion` if it passes.

    Args:
        client: client of the registry.
        name: the registered model.
        version: the candidate.
        decide: decides against the present champion, or against None while there is none.
        given: what `ava gate` decided. Its refusal stands; what it let through is decided again, for the champion may
            have changed since.

    Raises:
        AvaError: others kept changing the champion meanwhile.
    """
    client.set_registered_model_alias(name, CHALLENGER, str(version))
    for _ in range(ATTEMPTS):
        champion = champion_to_beat(client, name, version)
        decision = given if given and not given.passed else decide(champion)
        record = {
            "bounds": [bound.record() for bound in decision.bounds],
            "gate": decision.gate,
            "previous_champion": decision.champion,
            **({"other_text": True} if decision.other_text else {}),
        }
        client.set_model_version_tag(name, str(version), GATE, json.dumps(record, sort_keys=True))
        if not decision.passed or _move_champion(client, name, version, decision.champion):
            client.set_model_version_tag(name, str(version), PROMOTED, "true" if decision.passed else "false")
            return Outcome(promoted=decision.passed, bounds=decision.bounds, previous=decision.champion)
        log.warning("%s: somebody else moved the alias %s meanwhile: deciding again", name, CHAMPION)
    raise AvaError(f"{name}: the alias {CHAMPION} was moved by others {ATTEMPTS} times: run `ava register` again")


def _move_champion(client: MlflowClient, name: str, version: int, previous: int | None) -> bool:
    """Move the alias from `previous` to `version`; False if somebody else moved it before or after."""
    holder = read_aliases(client, name).get(CHAMPION)
    if holder not in (previous, version):
        return False
    client.set_registered_model_alias(name, CHAMPION, str(version))
    return read_aliases(client, name).get(CHAMPION) == version


def _read(client: MlflowClient, name: str, version: int, aliases: dict[str, int]) -> Version:
    return describe(client.get_model_version(name, str(version)), aliases)


def _record(version: Version) -> dict[str, Any]:
    """The record of the last decision about a version; empty before the first."""
    return json.loads(version.tags.get(GATE, "{}"))
