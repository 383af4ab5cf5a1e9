"""index.json: what an index is made of, and the sizes and digests of its files.

Sizes are looked at whenever an index is opened: they tell a file that was cut or is missing. Digests are looked at on
request: that reads every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.files import parse_json, write_json

FORMAT = 1
FILE = "index.json"


@dataclass(frozen=True)
class IndexManifest:
    """What index.json says.

    Attributes:
        embedding: name of what made the vectors; empty: there are none.
        dimension: of the vectors; 0: there are none.
        passages: how many.
        documents: how many.
        settings: what the passages were made with, as the index's maker gave it.
        files: size in bytes and SHA-256 by path in the folder.
    """

    embedding: str
    dimension: int
    passages: int
    documents: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Write index.json with the sizes and digests of all files that are in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    files = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    write_json(folder / FILE, vars(manifest) | {"files": files, "format": FORMAT})


def read_manifest(folder: Path, *, verify: bool = False) -> IndexManifest:
    """Read index.json and look whether the files are those that it names.

    Args:
        folder: of the index.
        verify: compare digests, not sizes alone.

    Raises:
        ConfigError: there is no index.
        AvaError: of another version of the format.
        IntegrityError: a file is missing, or isn't what it was.
    """
    try:
        content = parse_json((folder / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{folder} is no index (it has no {FILE}): build one with `ava index`") from None
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder / FILE} can't be read ({error}): {_way_out(folder)}") from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if version != FORMAT:
        raise AvaError(f"{folder} is an index of format {version!r}, and this Ava reads {FORMAT}: build it anew")
    try:
        manifest = IndexManifest(**content)
        expected = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in manifest.files.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{folder / FILE} has other keys than an index ({error}): {_way_out(folder)}") from error
    for name, (size, digest) in expected.items():
        _check(folder, name, size, digest if verify else None)
    return manifest


def _check(folder: Path, name: str, size: int, digest: str | None) -> None:
    path = folder / name
    if not path.is_file():
        raise IntegrityError(f"{path} is missing: {_way_out(folder)}")
    if (found := path.stat().st_size) != size:
        raise IntegrityError(f"{path} has {found:,} bytes, not the {size:,} that it was built with: {_way_out(folder)}")
    if digest is not None and _sha256(path) != digest:
        raise IntegrityError(f"{path} isn't what it was built as (another SHA-256): {_way_out(folder)}")


def _way_out(folder: Path) -> str:
    return f"copy {folder.name} again, or build it anew with `ava index`"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
