"""manifest.json: what an output holds and what it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ava_core.config.json_text import read_json
from ava_core.errors import AvaError, IntegrityError
from ava_core.runtime.digests import digest_file, digest_value

NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity and the contents of a step's output.

    Attributes:
        step: name of the step that wrote it.
        key: digest of everything that determines the output (see `ava_core.runtime.step`).
        version: version of the distribution.
        code: digest of the sources that the step runs.
        config: digest of the configuration sections that the step reads.
        choices: values of the flags that change the result.
        inputs: digest of each input's files, by name; a repeated input has one entry per folder, `name.0`, `name.1`.
        threads: CPU threads that computed it.
        ranks: processes that computed it.
        files: bytes and SHA-256 of every file but this one, by relative path.
    """

    step: str
    key: str
    version: str
    code: str
    config: str
    choices: dict[str, str]
    inputs: dict[str, str]
    threads: int
    ranks: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the contents alone: outputs with the same files have the same digest, however they were made."""
        return digest_value(self.files)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file below `folder` but the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in files
    }


def write(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json."""
    (folder / NAME).write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> Manifest:
    """Read a manifest without checking the files.

    Raises:
        AvaError: there is no folder or no manifest.
        IntegrityError: the manifest can't be understood.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise AvaError(f"{folder}: no such folder: give the output folder of an earlier step")
    if not path.is_file():
        raise AvaError(f"{folder}: holds no {NAME}: it is not a finished output of a step")
    try:
        manifest = Manifest(**read_json(path.read_bytes()))
        _check_shape(manifest)
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{path}: can't be read ({error}): restore the folder or run its step again") from error
    return manifest


def _check_shape(manifest: Manifest) -> None:
    """Types of what others rely on; the dataclass alone takes anything.

    Raises:
        TypeError: naming the field.
    """
    for name, kind in (("step", str), ("key", str), ("inputs", dict), ("files", dict)):
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"{name} = {getattr(manifest, name)!r}")
    for name, entry in manifest.files.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise TypeError(f"files.{name} = {entry!r}")


def verify(folder: Path, step: str | None = None) -> Manifest:
    """Read a manifest and hold every file against it.

    Raises:
        AvaError: not a finished output, or the output of another step than `step`.
        IntegrityError: a file is missing, added or changed; the message names it.
    """
    manifest = read(folder)
    if step is not None and manifest.step != step:
        raise AvaError(f"{folder}: is the output of `ava {manifest.step}`, not of `ava {step}`")
    remedy = f"restore the folder or run `ava {manifest.step}` again"
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {NAME}
    for name in sorted(present ^ manifest.files.keys()):
        state = "is missing" if name in manifest.files else "is not in the manifest"
        raise IntegrityError(f"{folder / name}: {state}: {remedy}")
    for name, expected in manifest.files.items():
        path = folder / name
        if path.stat().st_size != expected["bytes"] or digest_file(path) != expected["sha256"]:
            raise IntegrityError(f"{path}: its bytes are not those in the manifest: {remedy}")
    return manifest
