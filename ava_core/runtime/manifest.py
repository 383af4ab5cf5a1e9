"""manifest.json: what an output holds and what it was made from.

It ends with a digest over itself and has one canonical form, the text that `write` makes of its fields: whatever byte
is changed, and be it a space, `read` refuses it. Against an attacker a digest in the same file proves nothing; that a
folder is the one that was meant is told from outside, by the key of a step, the manifest of an output that was made
from it, or the registry.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ava_core.config.hardware import usable_cores
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.files import parse_json, write_whole
from ava_core.runtime.digests import digest_unchanged, digest_value, files_below
from ava_core.steps.tools import command_of

log = logging.getLogger(__name__)
NAME = "manifest.json"
SELF = "sha256"
"""Field of the digest over all others."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The identity and the contents of a step's output.

    Attributes:
        step: name of the step that wrote it.
        key: digest of everything that determines the output (see `ava_core.runtime.identity`).
        version: version of the distribution, which is no part of the key.
        code: digest of the code that can change the output (see `ava_core.runtime.code`).
        config: digest of the configuration sections that the step reads.
        choices: values of the flags that change the result.
        inputs: digest of each input's files, by name; a repeated input has one entry per folder, `name.0`, `name.1`.
        made_from: digest of each input's manifest, by the names in `inputs`, of inputs that are outputs themselves. So
            where an output came from can be followed; the key goes by `inputs`, for equal files give equal results.
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
    made_from: dict[str, str] = field(default_factory=dict)
    threads: int
    ranks: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the contents alone: outputs with the same files have the same digest, however they were made."""
        return digest_value(self.files)

    @property
    def sha256(self) -> str:
        """Digest of the manifest itself: of the contents and of how they were made."""
        return digest_value(asdict(self))


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file below `folder` but the manifest itself.

    Raises:
        IntegrityError: there is something that is no file; see `files_below`.
    """
    names = _names(folder)
    return dict(zip(names, _describe(folder, names), strict=True))


def write(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json, whole or not at all; what a link in its place leads to stays as it is."""
    write_whole(folder / NAME, _text(manifest), beside=folder)


def read(folder: Path) -> Manifest:
    """Read a manifest without checking the files.

    Raises:
        AvaError: there is no folder or no manifest.
        IntegrityError: the manifest isn't the one that was written.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise AvaError(f"{folder}: no such folder: give the output folder of an earlier step")
    if not path.is_file():
        what = adapter_line(folder) or f"{folder}: holds no {NAME}: it is not a finished output of a step"
        raise AvaError(what)
    content = path.read_bytes()
    remedy = "restore the folder or run its step again"
    try:
        fields = parse_json(content)
        has_digest = fields.pop(SELF, None) is not None
        manifest = Manifest(**fields)
        _check_shape(manifest)
        text = _text(manifest)
    except (ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise IntegrityError(f"{path}: can't be read ({reason}): {remedy}") from error
    if not has_digest:
        raise IntegrityError(f"{path}: has no digest over itself: it is of an earlier version of Ava: {remedy}")
    if content != text:
        raise IntegrityError(f"{path}: was changed after it was written: {remedy}")
    return manifest


def adapter_line(folder: Path) -> str:
    """What to say of an adapter's folder where a model's is asked for; empty if it is none."""
    if not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        return ""
    return (
        f"{folder}: is an adapter, not a model: give the model folder that `ava train` left it in, or make one with"
        f" `ava merge --model BASE --adapter {folder}`"
    )


def verify(folder: Path, *producers: str) -> Manifest:
    """Read a manifest and verify every file's size and SHA-256 against it.

    Args:
        folder: the output of a step.
        producers: names of the steps that may have made it; none: any may.

    Raises:
        AvaError: not a finished output, or the output of a step that is none of `producers`.
        IntegrityError: a file is missing, added or changed, or is no file; the message names it.
    """
    manifest = read(folder)
    if producers and manifest.step not in producers:
        wanted = " or ".join(f"`{command_of(name)}`" for name in producers)
        raise AvaError(f"{folder}: is the output of `{command_of(manifest.step)}`, not of {wanted}")
    remedy = f"restore the folder or run `{command_of(manifest.step)}` again"
    for name in sorted(set(_names(folder)) ^ manifest.files.keys()):
        state = "is missing" if name in manifest.files else "is not in the manifest"
        raise IntegrityError(f"{folder / name}: {state}: {remedy}")
    for name, found in zip(manifest.files, _describe(folder, manifest.files), strict=True):
        if found != manifest.files[name]:
            raise IntegrityError(f"{folder / name}: its bytes are not those in the manifest: {remedy}")
    return manifest


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder) if path != folder / NAME]


def _describe(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Bytes and SHA-256 of each file, in their order; several at a time, for hashing leaves the interpreter free."""

    def describe(name: str) -> dict[str, Any]:
        path = folder / name
        return {"bytes": path.stat().st_size, "sha256": digest_unchanged(path)}

    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from pool.map(describe, names)


@contextmanager
def verified(folder: Path) -> Iterator[None]:
    """Verify a folder before it is read, and after it: what was changed in between may be what was read.

    The second time costs a look at each file's times (see `digest_unchanged`). A folder without a manifest, as other
    tools leave it, is reported in the log.

    Raises:
        AvaError: there is no such folder.
        IntegrityError: as `verify`.
    """
    if folder.is_dir() and not os.path.lexists(folder / NAME):
        _tell_of(folder)
        yield
        return
    before = verify(folder)
    yield
    if verify(folder) != before:
        raise IntegrityError(f"{folder / NAME}: was changed while the folder was read: try again")


@cache
def _tell_of(folder: Path) -> None:
    """Warn once per folder, however often it is read."""
    log.warning("%s: holds no %s: what it holds isn't verified", folder, NAME)


def _text(manifest: Manifest) -> bytes:
    """The manifest's canonical bytes; `read` refuses any other."""
    return (json.dumps({**asdict(manifest), SELF: manifest.sha256}, indent=2, sort_keys=True) + "\n").encode()


def _check_shape(manifest: Manifest) -> None:
    """Types of all fields; the dataclass alone takes anything.

    Raises:
        TypeError: naming the field.
    """
    for name in ("step", "key", "version", "code", "config"):
        _require(name, getattr(manifest, name), str)
    for name in ("threads", "ranks"):
        _require(name, getattr(manifest, name), int)
    for name in ("choices", "inputs", "made_from", "files"):
        _require(name, getattr(manifest, name), dict)
    for name in ("choices", "inputs", "made_from"):
        for key, value in getattr(manifest, name).items():
            _require(f"{name}.{key}", value, str)
    for name, entry in manifest.files.items():
        _require(f"files.{name}", entry, dict)
        if entry.keys() != {"bytes", "sha256"}:
            raise TypeError(f"files.{name} has the fields {', '.join(sorted(entry)) or 'none'}")
        _require(f"files.{name}.bytes", entry["bytes"], int)
        _require(f"files.{name}.sha256", entry["sha256"], str)


def _require(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:  # not isinstance: a bool is an int
        raise TypeError(f"{name} = {value!r}")
