"""Verifying a downloaded registered model against the digests in the registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ava_core.errors import AvaError, first_line
from ava_core.runtime import manifest, pins

log = logging.getLogger(__name__)
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}


def check_download(local: Path, tags: Mapping[str, str], path: str = "") -> None:
    """Check what was downloaded from `path` of a logged model with these tags; nothing if they hold no pins.

    A file that only a manifest knows, downloaded alone, passes: there is nothing here to hold it against.

    Raises:
        IntegrityError: a file is missing, added or changed; the message names it.
    """
    known = pins.read(tags)
    if known is None:
        return
    if local.is_file():
        if path in known:
            pins.check_file(local, known[path])
        return
    expected = pins.part(known, path) if path else known
    if not path or manifest.NAME in expected:
        pins.check(local, expected, ignored=(pins.NOTE,))


def check_loaded(folder: Path) -> dict[str, str] | None:
    """The pins of a whole downloaded version, whose files are checked; None where they can't be had.

    For environments without Ava, where nobody has checked before: there the script and the archive that this code
    comes from have run already, but no weights. What was added since (Python's compiled script) does no harm any more.

    Raises:
        IntegrityError: a file with a pin is missing or changed; the message names it.
    """
    import mlflow
    from mlflow.models import Model

    from ava_core.tracking.connection import variables_set

    if not mlflow.is_tracking_uri_set():  # a copy on its own, such as `mlflow models build-docker` makes
        return None
    try:
        with variables_set(PATIENCE):
            model = mlflow.MlflowClient().get_logged_model(str(Model.load(str(folder)).model_id))
        known = pins.read(model.tags)
    except AvaError:
        raise
    except Exception as error:  # MLflow's own, those of its HTTP client, of a database's driver
        log.warning("%s: isn't checked against the registry: %s", folder, first_line(error)[:200])
        return None
    for name, digest in (known or {}).items():
        pins.check_file(folder / name, digest)
    return known
