"""Find a thing on the server by one of its fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def equals(field: str, value: str) -> str:
    """A filter of the API's list calls: `field` is `value`."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": field, "string_value": value}]})


def first(items: Sequence[T] | None) -> T | None:
    """The first of a list answer, which is None when it is empty."""
    return items[0] if items else None
