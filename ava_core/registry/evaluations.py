"""The evaluation that a version carries among its artifacts: others are held against it document by document."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ava_core.errors import IntegrityError
from ava_core.evaluation import losses
from ava_core.evaluation.losses import Losses, NoLossesError
from ava_core.files import unfinished_folder
from ava_core.registry.candidate import EVALUATION_ARTIFACT
from ava_core.registry.download import ARTIFACTS, fetch_artifact, find_entity, require_safe
from ava_core.runtime import pins
from ava_core.tracking.connection import connect
from ava_core.tracking.faults import server_errors


def fetch_evaluation(uri: str, tracking_uri: str, folder: Path) -> Path:
    """Download a version's evaluation into `folder`, verified against the digests in the registry's database.

    Args:
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        tracking_uri: address of the registry.
        folder: an existing one.

    Raises:
        ConfigError: `uri` is no such address.
        NoLossesError: an older Ava registered the version, without its evaluation.
        AvaError: the registry has no such version, or doesn't answer.
        IntegrityError: what came is not what was registered.
    """
    version = find_entity(uri, tracking_uri)
    expected = pins.part(pins.read(version.tags) or {}, f"{ARTIFACTS}/{EVALUATION_ARTIFACT}")
    if not expected:
        raise NoLossesError(
            f"{uri}: version {version.version} was registered without its evaluation, by an older Ava: evaluate its"
            " model and register it again"
        )
    target = folder / f"{version.name}-{version.version}"
    with unfinished_folder(target) as partial, server_errors(tracking_uri, f"fetching the evaluation of {uri}"):
        fetched = fetch_artifact(version, tracking_uri, partial, EVALUATION_ARTIFACT)
        try:
            pins.check(fetched, expected)
            require_safe(fetched)
        except IntegrityError as error:
            raise IntegrityError(f"{uri}: {str(error).replace(f'{partial}/', '')}") from error
        if not target.is_dir():
            fetched.rename(target)
    return target


def read_losses(name: str, tracking_uri: str, version: int) -> Losses:
    """Losses by document of a version; raises as `fetch_evaluation` and `losses.read`."""
    with tempfile.TemporaryDirectory(prefix="ava-evaluation-") as scratch:
        return losses.read(fetch_evaluation(f"models:/{name}/{version}", tracking_uri, Path(scratch)))


def read_parameters(uri: str, tracking_uri: str) -> dict[str, str]:
    """The parameters of the run that a version was registered from, by dotted key; none if that was deleted.

    Raises:
        AvaError: the registry has no such version, or doesn't answer.
    """
    from mlflow.exceptions import MlflowException

    version = find_entity(uri, tracking_uri)
    if not version.run_id:
        return {}
    try:
        return dict(connect(tracking_uri).get_run(version.run_id).data.params)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        with server_errors(tracking_uri, f"reading the run of {uri}"):
            raise
