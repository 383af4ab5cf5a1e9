"""A registered model as a folder on this machine, verified before anything reads it."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.registry.versions import MODEL
from ava_core.runtime import manifest
from ava_core.tracking.address import redact
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
MODEL_ARTIFACT = "artifacts/model"
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


def download_model(uri: str, tracking_uri: str, cache: Path) -> Path:
    """A registered model's folder, laid out like the output of `ava train`.

    Taken from `cache` when it is there and still whole; the registry is asked each time what the alias means.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: address of the registry.
        cache: folder for downloaded models; each lies at `cache/NAME/DIGEST`.

    Raises:
        ConfigError: `uri` is no such address.
        AvaError: the registry has no such model, or doesn't answer.
        IntegrityError: what came is not what was registered.
    """
    address = parse_address(uri)
    client = connect(tracking_uri)
    version = _find(client, address, uri, tracking_uri)
    digest = version.tags.get(MODEL)
    if digest is None:
        raise AvaError(
            f"{uri}: version {version.version} was not registered by `ava register`: it names no model digest"
        )
    folder = cache / address.name / digest[:32]
    if _whole(folder, digest):
        return folder
    log.info("%s: fetching version %s", uri, version.version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        with server_errors(tracking_uri, f"fetching {uri}"):
            fetched = _fetch(version, tracking_uri, Path(partial))
        _check(fetched, digest, uri)
        shutil.rmtree(folder, ignore_errors=True)
        fetched.rename(folder)
    return folder


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
        raise AvaError(
            f"{uri}: {redact(tracking_uri)} has no such version: see `ava show --registry --model-name {address.name}`"
        ) from error


def _fetch(version: ModelVersion, tracking_uri: str, partial: Path) -> Path:
    import mlflow

    fetched = mlflow.artifacts.download_artifacts(
        artifact_uri=f"models:/{version.name}/{version.version}/{MODEL_ARTIFACT}",
        dst_path=str(partial),
        tracking_uri=tracking_uri,
        registry_uri=tracking_uri,
    )
    return Path(fetched)


def _whole(folder: Path, digest: str) -> bool:
    """Whether the cache holds it; a damaged copy is fetched anew."""
    if not folder.is_dir():
        return False
    try:
        return manifest.verify(folder, "train").digest == digest
    except AvaError as error:
        log.warning("%s: the kept copy is not used", error)
        return False


def _check(folder: Path, digest: str, uri: str) -> None:
    if manifest.verify(folder, "train").digest != digest:
        raise IntegrityError(f"{uri}: the files are not those that were registered: register the model again")
    for path in sorted(folder.rglob("*")):
        if path.suffix in UNSAFE:
            raise IntegrityError(f"{uri}: holds {path.name}, a format that can run code: weights must be safetensors")
