"""JSON of files that users and other programs wrote."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What a JSON text stands for; like `json.loads`, but every text that can't be read ends in the same error.

    Raises:
        ValueError: no JSON, no UTF-8, a number of thousands of digits, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
