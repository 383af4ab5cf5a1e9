"""The version that an address last resolved to, for the time when no registry answers.

A note beside the downloaded models holds the version's number and tags: enough to find its folder and to verify it as
with the registry. It is used only where no registry answers; an answer, be it a refusal or that the version is gone,
always counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.files import write_whole
from ava_core.redaction import redact_address

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
FOLDER = ".addresses"
MAX_BYTES = 2**20


@dataclass(frozen=True)
class Remembered:
    """A version of a model under the names of MLflow's `ModelVersion`.

    Attributes:
        name: of the model.
        version: its number.
        creation_timestamp: milliseconds since 1970.
        tags: that it had.
    """

    name: str
    version: int
    creation_timestamp: int
    tags: dict[str, str]


def remember(cache: Path, tracking_uri: str, uri: str, version: ModelVersion) -> None:
    """Note the version that `uri` resolves to, atomically. A cache that can't be written to is a warning, no error."""
    note = Remembered(version.name, int(version.version), version.creation_timestamp, dict(version.tags))
    path = _path(cache, tracking_uri, uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"registry": redact_address(tracking_uri), "address": uri, **asdict(note)})
        write_whole(path, text, durable=True, mode=0o600)  # for its owner alone
    except OSError as error:
        log.warning("%s: what %s means can't be remembered (%s)", path, uri, error.strerror or error)


def recall(cache: Path, tracking_uri: str, uri: str) -> Remembered | None:
    """The version that `uri` last resolved to on that registry; None if none was noted."""
    path = _path(cache, tracking_uri, uri)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too long")
        given = json.loads(path.read_text())
        if (given.pop("registry"), given.pop("address")) != (redact_address(tracking_uri), uri):
            raise ValueError("is of another address")
        note = Remembered(**given)
        _require_types(note)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s: is damaged and isn't used (%s)", path, error)
        return None
    return note


def _path(cache: Path, tracking_uri: str, uri: str) -> Path:
    digest = hashlib.sha256(f"{redact_address(tracking_uri)} {uri}".encode()).hexdigest()
    return cache / FOLDER / f"{digest[:32]}.json"


def _require_types(note: Remembered) -> None:
    """Types of what others rely on; the dataclass alone takes anything.

    Raises:
        TypeError: naming the field.
    """
    for name, kind in (("name", str), ("version", int), ("creation_timestamp", int), ("tags", dict)):
        if type(getattr(note, name)) is not kind:
            raise TypeError(f"{name} = {getattr(note, name)!r}")
    if not all(type(part) is str for tag in note.tags.items() for part in tag):
        raise TypeError("tags: not all are text")
