"""The aliases: `challenger` is the newest candidate, `champion` the version that the gate let through.

MLflow writes an alias without asking what it was and keeps no history. So the holder is read right before and after the
write, and each decision stays as tags on the version that it was about: the bounds, the version replaced, the outcome.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ava_core.errors import AvaError
from ava_core.registry.gate import Bound
from ava_core.registry.versions import (
    CHALLENGER,
    CHAMPION,
    GATE,
    GATE_CONFIG,
    PREVIOUS,
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
    tags = version.tags
    if tags.get(GATE_CONFIG) != gate_digest or PROMOTED not in tags:
        return None
    bounds = [{key: value for key, value in bound.items() if key != "passed"} for bound in json.loads(tags[GATE])]
    previous = tags.get(PREVIOUS, "")
    return Outcome(
        promoted=tags[PROMOTED] == "true",
        decision=[Bound(**bound) for bound in bounds],
        previous=int(previous) if previous else None,
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
        _record(client, name, version, {GATE: _text(bounds), GATE_CONFIG: gate_digest, PREVIOUS: str(previous or "")})
        if not passed or _move_champion(client, name, version, previous):
            _record(client, name, version, {PROMOTED: "true" if passed else "false"})
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
    previous = champion.tags.get(PREVIOUS, "")
    return _read(client, name, int(previous), {}) if previous else None


def _read(client: MlflowClient, name: str, version: int, aliases: dict[str, int]) -> Version:
    return describe(client.get_model_version(name, str(version)), aliases)


def _record(client: MlflowClient, name: str, version: int, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)


def _text(bounds: list[Bound]) -> str:
    return json.dumps([bound.record() for bound in bounds], sort_keys=True)
