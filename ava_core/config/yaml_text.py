"""Configuration values as YAML that reads back as the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

# PyYAML writes these as they are and reads them as line breaks.
_SEPARATORS = ("\x85", "\u2028", "\u2029")


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of `values`, keys in their order, letters of all scripts readable."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    if any(separator in text for separator in _SEPARATORS):
        return yaml.safe_dump(dict(values), sort_keys=False)
    return text


def is_whole(text: str) -> bool:
    """Whether the text is YAML in which no quote and no bracket is left open."""
    try:
        for _ in yaml.parse(text, Loader=yaml.SafeLoader):
            pass
    except yaml.YAMLError:
        return False
    return True
