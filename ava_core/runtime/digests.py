"""SHA-256 of files, of values and of our own source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
PRESETS = PACKAGE / "config" / "files"


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_value(value: Any) -> str:
    """SHA-256 of a value of JSON types; the order of keys doesn't matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tree(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder` (or of one file)."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_value([[path.relative_to(folder).as_posix(), digest_file(path)] for path in files])


def _is_source(path: Path) -> bool:
    """Code and what travels with it, such as templates; not the presets, whose values enter the key by themselves."""
    compiled = "__pycache__" in path.parts or path.suffix in (".pyc", ".so")
    return path.is_file() and not compiled and PRESETS not in path.parents


@cache
def digest_code(parts: Iterable[str]) -> str:
    """SHA-256 of the sources under `parts`, paths relative to the package `ava_core`.

    A change in the code that a step runs gives it another key, so that stale work is never reused.
    """
    files: set[Path] = set()
    for part in parts:
        path = PACKAGE / part
        files.update(filter(_is_source, path.rglob("*")) if path.is_dir() else [path])
    return digest_value([[file.relative_to(PACKAGE).as_posix(), digest_file(file)] for file in sorted(files)])
