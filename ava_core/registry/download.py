"""A registered model as a folder on this machine, verified before anything reads it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.files import replace_folder, unfinished_folder
from ava_core.redaction import redact_address
from ava_core.registry.promotion import why_no_champion
from ava_core.registry.remembered import Remembered, recall, remember
from ava_core.registry.versions import CHAMPION
from ava_core.runtime import manifest, pins
from ava_core.steps.schemes import SMALLEST_FIRST
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import Unreachable, server_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
ARTIFACTS = "artifacts"
"""Where MLflow keeps the artifacts of a pyfunc."""
TRAINED = "model"
"""Artifact of the trained weights; the quantised ones are called after their scheme."""
"""In the order in which `auto` takes the first that a version has."""
# Formats that run code when they are read. Weights come as safetensors only.
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".py", ".so")


class ModelAddress(NamedTuple):
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`, taken apart; one of alias and version is None."""

    name: str
    alias: str | None
    version: int | None


def parse_address(uri: str) -> ModelAddress:
    """Take a model's address apart.

    Raises:
        ConfigError: it is none.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri}: is no registered model: give models:/NAME@ALIAS or models:/NAME/VERSION")
    version = match["version"]
    return ModelAddress(match["name"], match["alias"], int(version) if version else None)


class Downloaded(NamedTuple):
    """A registered model on this machine.

    Attributes:
        folder: its files.
        version: number of the version.
        created: when that was made, in seconds since 1970.
        remembered: no registry answers, and this is the version that the address last resolved to.
    """

    folder: Path
    version: int
    created: int
    remembered: bool = False


def find_version(uri: str, tracking_uri: str) -> int:
    """Number of the version that an address resolves to; nothing is downloaded.

    Raises:
        ConfigError: `uri` is no such address.
        AvaError: the registry has no such version, or doesn't answer.
    """
    return int(find_entity(uri, tracking_uri).version)


def find_entity(uri: str, tracking_uri: str) -> ModelVersion:
    """The version that an address resolves to, as MLflow describes it; raises as `find_version`."""
    return _find(connect(tracking_uri), parse_address(uri), uri, tracking_uri)


def download_model(uri: str, tracking_uri: str, cache: Path, weights: str = TRAINED) -> Downloaded:
    """A registered model's folder, laid out like the output of `ava train` or `ava quantize`.

    Taken from `cache` when it is there and its digests hold. The alias is resolved at each call; where no registry
    answers, the version that it last resolved to is taken, with a warning. The files are always verified against the
    digests in the registry's database, never against what lies in the artifact store.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: address of the registry.
        cache: folder for downloaded models; each lies at `cache/NAME/DIGEST`, called after the digest of its manifest.
        weights: `model` for the trained ones, a scheme, or `auto` for the smallest quantised ones.

    Raises:
        ConfigError: `uri` is no such address.
        AvaError: the registry has no such model or weights, or doesn't answer and no whole copy is kept here.
        IntegrityError: what came is not what was registered.
    """
    address = parse_address(uri)
    away: Unreachable | None = None
    version: ModelVersion | Remembered
    try:
        version = _find(connect(tracking_uri), address, uri, tracking_uri)
    except Unreachable as error:
        remembered = recall(cache, tracking_uri, uri)
        if remembered is None:
            raise
        version, away = remembered, error
    known = pins.read(version.tags)
    if known is None:
        raise AvaError(
            f"{uri}: version {version.version} names no digests of its files: they can't be verified; register it again"
        )
    parts = {name: pins.part(known, f"{ARTIFACTS}/{name}") for name in _fitting(known, weights, version, uri)}
    folders = {name: cache / address.name / part[manifest.NAME][:32] for name, part in parts.items()}
    chosen = next((name for name in folders if away is None or folders[name].is_dir()), next(iter(folders)))
    folder, expected = folders[chosen], parts[chosen]
    if not _whole(folder, expected):
        if away is not None:
            raise away
        log.info("%s: fetching %s of version %s", uri, chosen, version.version)
        with unfinished_folder(folder) as partial:
            try:
                with server_errors(tracking_uri, f"fetching {uri}"):
                    fetched = fetch_artifact(version, tracking_uri, partial, chosen)
                pins.check(fetched, expected)
                require_safe(fetched)
            except IntegrityError as error:  # the folder is gone when somebody reads this
                raise IntegrityError(f"{uri}: {str(error).replace(f'{partial}/', '')}") from error
            replace_folder(fetched, folder)
    if isinstance(version, Remembered):
        log.warning("%s: the registry is away, so it is version %s, as it last was: %s", uri, version.version, away)
    else:
        remember(cache, tracking_uri, uri, version)
    return Downloaded(folder, int(version.version), version.creation_timestamp // 1000, away is not None)


def _fitting(known: pins.Pins, wanted: str, version: ModelVersion | Remembered, uri: str) -> list[str]:
    """The names of the wanted artifacts; for `auto` of all quantised forms that the version has, the smallest first.

    Raises:
        AvaError: it has none, or not the wanted one.
    """
    held = [name for name in (*SMALLEST_FIRST, TRAINED) if f"{ARTIFACTS}/{name}/{manifest.NAME}" in known]
    fitting = [name for name in held if (name != TRAINED if wanted == "auto" else name == wanted)]
    if not fitting:
        raise AvaError(
            f"{uri}: version {version.version} holds {', '.join(sorted(held)) or 'nothing'}: it has no"
            f" {'quantised model' if wanted == 'auto' else wanted}: list it in quantize.schemes and register again"
        )
    return fitting


def _find(client: MlflowClient, address: ModelAddress, uri: str, tracking_uri: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        if address.alias is not None:
            return client.get_model_version_by_alias(address.name, address.alias)
        return client.get_model_version(address.name, str(address.version))
    except MlflowException as error:
        # MLflow answers a missing alias with INVALID_PARAMETER_VALUE and everything else that is missing with this.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            with server_errors(tracking_uri, f"looking up {uri}"):
                raise
        if address.alias == CHAMPION:
            with server_errors(tracking_uri, f"looking up {uri}"):
                reason = why_no_champion(client, address.name)
            raise AvaError(f"{uri}: {reason}") from error
        raise AvaError(
            f"{uri}: {redact_address(tracking_uri)} has no such version:"
            f" see `ava show --registry --model-name {address.name}`"
        ) from error


def fetch_artifact(version: ModelVersion | Remembered, tracking_uri: str, partial: Path, weights: str) -> Path:
    """Download one of a version's artifacts into the folder `partial`; nothing is verified."""
    import mlflow

    fetched = mlflow.artifacts.download_artifacts(
        artifact_uri=f"models:/{version.name}/{version.version}/{ARTIFACTS}/{weights}",
        dst_path=str(partial),
        tracking_uri=tracking_uri,
        registry_uri=tracking_uri,
    )
    return Path(fetched)


def _whole(folder: Path, expected: pins.Pins) -> bool:
    """Whether the cache holds it; a damaged copy is fetched anew."""
    if not folder.is_dir():
        return False
    try:
        pins.check(folder, expected)
    except AvaError as error:
        log.warning("%s: the kept copy is not used", error)
        return False
    return True


def require_safe(folder: Path) -> None:
    """Refuse a folder with a file in a format that can run code when it is read.

    Raises:
        IntegrityError: it names the file.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in UNSAFE:
            raise IntegrityError(f"{path}: a format that can run code: weights must be safetensors")
