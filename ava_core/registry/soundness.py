"""Whether a version's files are still there and unchanged, without downloading its weights.

Files with a digest in the registry (manifests, MLmodel, script, archive of the code) are downloaded and verified. Of
the files that the manifests name, presence and size are checked; a download of the model verifies their bytes.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ava_core.errors import IntegrityError
from ava_core.registry.versions import CHAMPION, EVALUATION, read_aliases
from ava_core.runtime import manifest, pins

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
REQUESTS_AT_A_TIME = 8
UNKNOWN = "the registry knows no digests of its files"
GONE = "RESOURCE_DOES_NOT_EXIST"


def require_sound_champion(client: MlflowClient, name: str, evaluation: str) -> None:
    """Refuse to compare a candidate with a champion that can't be loaded.

    A champion that was registered from the candidate's own evaluation passes, since `ava register` makes it anew. One
    without pins passes with a warning: its files can't be verified.

    Raises:
        IntegrityError: its files are gone or changed.
    """
    aliases = read_aliases(client, name)
    if CHAMPION not in aliases:
        return
    version = client.get_model_version(name, str(aliases[CHAMPION]))
    if version.tags.get(EVALUATION) == evaluation:
        return
    fault = find_fault(client, version)
    if fault == UNKNOWN:
        log.warning("%s version %s, the champion: %s: only its figures count", name, version.version, fault)
    elif fault is not None:
        raise IntegrityError(
            f"{name} version {version.version}, the champion: {fault}: restore it, or take the alias {CHAMPION} away"
            f" from it on its page, and the bound without a champion decides"
        )


def find_fault(client: MlflowClient, version: ModelVersion) -> str | None:
    """The first file of a version that is missing or changed, such as `MLmodel: is missing`; None if all are whole.

    Raises:
        MlflowException: the server doesn't answer or refuses.
    """
    from mlflow.exceptions import MlflowException

    known = pins.read(version.tags)
    if known is None:
        return UNKNOWN
    try:
        model = client.get_logged_model((version.source or "").removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code != GONE:
            raise
        return "its logged model was deleted"
    return find_model_fault(client, model, known)


def find_model_fault(client: MlflowClient, model: LoggedModel, known: pins.Pins) -> str | None:
    """The same for a logged model, whose files should have these pins."""
    with ThreadPoolExecutor(REQUESTS_AT_A_TIME) as pool, tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        present = _list(pool, client, model, known)
        if missing := sorted(set(known) - set(present)):
            return f"{missing[0]}: is missing"
        list(pool.map(lambda path: _fetch(model, path, scratch), known))
        for path, digest in sorted(known.items()):
            try:
                pins.check_file(scratch / path, digest)
            except IntegrityError:
                return f"{path}: is not the file that was registered"
        sizes = _named_by_manifests(scratch, known)
        present |= _list(pool, client, model, set(sizes) - set(present))
        return next(_differences(sizes, present, known), None)


def _list(pool: ThreadPoolExecutor, client: MlflowClient, model: LoggedModel, paths: Iterable[str]) -> dict[str, int]:
    """Bytes of the files that there are in the folders of these paths, by path."""

    def list_folder(folder: str) -> dict[str, int]:
        found = client.list_logged_model_artifacts(model.model_id, None if folder == "." else folder)
        return {file.path: file.file_size or 0 for file in found if not file.is_dir}

    present: dict[str, int] = {}
    for listed in pool.map(list_folder, sorted({str(PurePosixPath(path).parent) for path in paths})):
        present |= listed
    return present


def _fetch(model: LoggedModel, path: str, scratch: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    target = scratch / path
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not download_artifacts, which asks first, file by file, whether it is a folder.
    get_artifact_repository(model.artifact_location)._download_file(path, str(target))


def _named_by_manifests(scratch: Path, known: pins.Pins) -> dict[str, int]:
    """Sizes in bytes of the files that the manifests list, by path."""
    folders = [PurePosixPath(path).parent for path in known if PurePosixPath(path).name == manifest.NAME]
    return {
        str(folder / name): int(file["bytes"])
        for folder in folders
        for name, file in manifest.read(scratch / folder).files.items()
    }


def _differences(sizes: Mapping[str, int], present: Mapping[str, int], known: pins.Pins) -> Iterator[str]:
    for path, size in sorted(sizes.items()):
        if path not in present:
            yield f"{path}: is missing"
        elif present[path] != size:
            yield f"{path}: has {present[path]:,} bytes, not {size:,}"
    for path in sorted(set(present) - set(sizes) - set(known) - {pins.NOTE}):
        yield f"{path}: was not registered with the others"
