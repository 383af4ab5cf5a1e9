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
from ava_core.registry.gate import Bound
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
    """What became of a version at the gate.

    Attributes:
        promoted: whether it was made champion.
        decision: the bounds it was held against.
        previous: the champion it was compared with, or None.
    """

    promoted: bool
    decision: list[Bound]
    previous: int | None


def read_outcome(version: Version, gate_digest: str) -> Outcome | None:
    """The outcome that is on record for this version at this very gate; None if it is still to be decided."""
    record = _record(version)
    if record.get("gate") != gate_digest or PROMOTED not in version.tags:
        return None
    bounds = [{key: value for key, value in bound.items() if key != "passed"} for bound in record["bounds"]]
    return Outcome(
        promoted=version.tags[PROMOTED] == "true",
        decision=[Bound(**bound) for bound in bounds],
        previous=record["previous_champion"],
    )


def challenge(
    client: MlflowClient, name: str, version: int, gate_digest: str, decide: Callable[[Version | None], list[Bound]]
) -> Outcome:
    """Make a version `challenger`, hold it against the champion, and make it `champion` if it passes.

    Args:
        client: client of the registry.
        name: the registered model.
        version: the candidate.
        gate_digest: digest of the gate's configuration.
        decide: gives the bounds for the present champion, or for None while there is none.

    Raises:
        AvaError: others kept changing the champion meanwhile.
    """
    client.set_registered_model_alias(name, CHALLENGER, str(version))
    for _ in range(ATTEMPTS):
        before = _champion(client, name)
        if before is not None and before.version == version:
            # A killed call had already moved the alias; what it was compared with stands in the tags.
            before = _replaced(client, name, before)
        bounds = decide(before)
        passed = all(bound.passed for bound in bounds)
        previous = before.version if before else None
        record = {"bounds": [bound.record() for bound in bounds], "gate": gate_digest, "previous_champion": previous}
        client.set_model_version_tag(name, str(version), GATE, json.dumps(record, sort_keys=True))
        if not passed or _move_champion(client, name, version, previous):
            client.set_model_version_tag(name, str(version), PROMOTED, "true" if passed else "false")
            return Outcome(promoted=passed, decision=bounds, previous=previous)
        log.warning("%s: somebody else moved the alias %s meanwhile: deciding again", name, CHAMPION)
    raise AvaError(f"{name}: the alias {CHAMPION} was moved by others {ATTEMPTS} times: run `ava register` again")


def _move_champion(client: MlflowClient, name: str, version: int, previous: int | None) -> bool:
    """Move the alias from `previous` to `version`; False if somebody else moved it before or after."""
    holder = read_aliases(client, name).get(CHAMPION)
    if holder not in (previous, version):
        return False
    client.set_registered_model_alias(name, CHAMPION, str(version))
    return read_aliases(client, name).get(CHAMPION) == version


def _champion(client: MlflowClient, name: str) -> Version | None:
    aliases = read_aliases(client, name)
    return _read(client, name, aliases[CHAMPION], aliases) if CHAMPION in aliases else None


def _replaced(client: MlflowClient, name: str, champion: Version) -> Version | None:
    previous = _record(champion).get("previous_champion")
    return _read(client, name, previous, {}) if previous else None


def _read(client: MlflowClient, name: str, version: int, aliases: dict[str, int]) -> Version:
    return describe(client.get_model_version(name, str(version)), aliases)


def _record(version: Version) -> dict[str, Any]:
    """The trail of the last decision about a version; empty before the first."""
    return json.loads(version.tags.get(GATE, "{}"))
