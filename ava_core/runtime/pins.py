"""Pins: the digests that a folder's files must have, kept apart from the folder: few, whatever lies in it.

A manifest beside its files can be rewritten together with them. So whoever gives files away keeps their pins elsewhere
(`ava register`: in the registry's database, while the files are in its artifact store), and whoever gets them checks
before reading any.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from ava_core.errors import IntegrityError
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_file

Pins = Mapping[str, str]
"""SHA-256 by relative path. A manifest stands for the files of its folder, so weights have no entries of their own."""
TAG = "ava.pins"
"""Of a registered version and of its logged model: the pins as JSON."""
NOTE = "registered_model_meta"
"""Name and version, which MLflow adds to what it downloads, and to a store that it reads in place."""
_REMEDY = "restore it in the artifact store, or register the model again"


def describe(folder: Path) -> dict[str, str]:
    """The pins of everything below `folder`."""
    files = _files(folder)
    covered = _covered(files)
    return {path: digest_file(folder / path) for path in files if _is_manifest(path) or not _is_below(path, covered)}


def read(tags: Mapping[str, str]) -> dict[str, str] | None:
    """The pins among tags; None if there are none.

    Raises:
        IntegrityError: they can't be read.
    """
    if TAG not in tags:
        return None
    try:
        return {str(path): str(digest) for path, digest in json.loads(tags[TAG]).items()}
    except (ValueError, AttributeError) as error:
        raise IntegrityError(f"tag {TAG}: can't be read ({error}): register the model again") from error


def part(pins: Pins, folder: str) -> dict[str, str]:
    """The pins of what lies below a sub-folder, by path relative to that one."""
    prefix = f"{folder}/"
    return {path.removeprefix(prefix): digest for path, digest in pins.items() if path.startswith(prefix)}


def check(folder: Path, pins: Pins, ignored: Collection[str] = ()) -> None:
    """Verify every file below `folder` but those `ignored` against its pin.

    Raises:
        IntegrityError: a file is missing, added or changed; the message names it.
    """
    for path, digest in sorted(pins.items()):
        check_file(folder / path, digest)
    covered = _covered(pins)
    for path in _files(folder):
        if path not in pins and path not in ignored and not _is_below(path, covered):
            raise IntegrityError(f"{folder / path}: was not registered with the others: {_REMEDY}")
    for below in covered:
        manifest.verify(folder / below)


def check_file(path: Path, digest: str) -> None:
    """Verify one file against its pin.

    Raises:
        IntegrityError: it is missing or changed.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: is missing: {_REMEDY}")
    if digest_file(path) != digest:
        raise IntegrityError(f"{path}: is not the file that was registered: {_REMEDY}")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _is_manifest(path: str) -> bool:
    return path.rpartition("/")[2] == manifest.NAME


def _covered(paths: Collection[str]) -> list[str]:
    """The folders that have a manifest among the paths, with their slash; `""` is the whole."""
    return [path.removesuffix(manifest.NAME) for path in paths if _is_manifest(path)]


def _is_below(path: str, folders: Collection[str]) -> bool:
    return any(path.startswith(folder) for folder in folders)
