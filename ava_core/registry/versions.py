"""Versions of a registered model, read from their tags in the registry."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from ava_core.origin import Origin

CHAMPION = "champion"
CHALLENGER = "challenger"
# Tags of a version, which stay when its run is deleted. Few, because MLflow's table of versions shows each in a line of
# its own: all figures are one of them, and a few figures have a tag under their own name too, to be read and searched.
EVALUATION = "ava.evaluation"
MODEL = "ava.model"
SOURCE = "ava.source"
ORIGIN, LICENCE = "ava.origin", "ava.licence"
"""Of a model that another maker trained, or that was made from one: where it comes from, and its licence."""
TEXT = "ava.text"
"""What tells the text that it was scored on from others."""
INDEX = "ava.index"
"""Digest of the index of passages that it was evaluated with, if there was one."""
FIGURES = "ava.figures"
"""All figures as a JSON object. MLflow takes 100,000 characters of a value, MySQL 65,535 bytes: some 1,500 figures."""
GATE = "ava.gate"
PROMOTED = "ava.promoted"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version in the registry.

    Attributes:
        version: its number.
        aliases: its aliases, sorted.
        figures: figures of its training, quantisation and evaluation, by name; of a version that an older Ava
            registered, the few that have a tag of their own.
        headlines: those that have a tag of their own; all, if none has.
        run_id: the run that it was registered from.
        tags: all its tags.
    """

    version: int
    aliases: tuple[str, ...]
    figures: Mapping[str, float]
    headlines: Mapping[str, float]
    run_id: str | None
    tags: Mapping[str, str]

    @property
    def parent(self) -> str:
        """Digest of the model that its training began from; empty for one with fresh weights."""
        try:
            return str(json.loads(self.tags.get(SOURCE, "{}")).get("parent", ""))
        except (ValueError, AttributeError):  # a tag that somebody has set
            return ""


def list_versions(name: str, tracking_uri: str) -> list[Version]:
    """All versions of a registered model, the newest first; empty if there is no such model.

    Raises:
        AvaError: the server doesn't answer or refuses.
    """
    client = connect(tracking_uri)
    with server_errors(tracking_uri, f"listing the versions of {name}"):
        aliases = read_aliases(client, name)
        found = [describe(version, aliases) for version in search(client, f"name = '{name}'")]
    return sorted(found, key=lambda version: -version.version)


def describe(version: ModelVersion, aliases: Mapping[str, int]) -> Version:
    """A version as plain values; `aliases` as `read_aliases` gives them, for a search leaves them out."""
    number = int(version.version)
    headlines = _headlines(version.tags)
    figures = {**headlines, **json.loads(version.tags.get(FIGURES, "{}"))}
    return Version(
        version=number,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == number)),
        figures=figures,
        headlines=headlines or figures,
        run_id=version.run_id or None,
        tags=dict(version.tags),
    )


def figure_tags(figures: Mapping[str, float], headlines: Collection[str]) -> dict[str, str]:
    """The tag with all figures, and one for each of the headlines that there are."""
    ordered = {name: float(value) for name, value in sorted(figures.items())}
    own = {name: repr(value) for name, value in ordered.items() if name in headlines}
    return {FIGURES: json.dumps(ordered, separators=(",", ":")), **own}


def origin_tags(origin: Origin | None) -> dict[str, str]:
    """The tags of a model that comes from elsewhere; none for one that was trained here from the beginning."""
    return {ORIGIN: origin.address, LICENCE: origin.licence_id} if origin else {}


def _headlines(tags: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for name, value in tags.items():
        if name.isidentifier():
            with suppress(ValueError):  # a tag that somebody has set
                found[name] = float(value)
    return found


def read_aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Version number by alias; empty if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def find_versions(client: MlflowClient, name: str, evaluation: str) -> list[ModelVersion]:
    """The versions that were registered from this evaluation, the lowest first.

    There are several where callers have raced, or where what belongs to the first was lost.
    """
    found = search(client, f"name = '{name}' and tags.`{EVALUATION}` = '{evaluation}'")
    return sorted(found, key=lambda version: int(version.version))


def search(client: MlflowClient, wanted: str) -> list[ModelVersion]:
    """All versions that fit the filter, over all pages."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(wanted, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
