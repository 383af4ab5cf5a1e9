"""Which of the files under configs/ set a key, and to what."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ava_core.config import presets
from ava_core.config.yaml_text import read_yaml

_SELDOM = ("auto",)
"""Folders with other files than values."""


@functools.cache
def _files() -> dict[str, Any]:
    paths = sorted(path for path in presets.FOLDER.glob("*/*.yaml") if path.parent.name not in _SELDOM)
    return {
        path.relative_to(presets.FOLDER).with_suffix("").as_posix(): read_yaml(path.read_text(encoding="utf-8"))
        for path in paths
    }


def presets_setting(key: str) -> dict[str, Any]:
    """Value by file (`cpu/tiny`, `hardware/a100`), of those that set a dotted key."""
    found = {}
    for name, values in _files().items():
        for part in key.split("."):
            if not isinstance(values, Mapping) or part not in values:
                break
            values = values[part]
        else:
            if values is not None:
                found[name] = values
    return found
