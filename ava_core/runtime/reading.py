"""JSON objects in the folders of steps and tools, which others may have damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json

RESTORE = "restore the folder"


def read_object(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """The JSON object in a file that a finished folder has.

    Args:
        path: of the file.
        remedy: what to do where it can't be read.

    Raises:
        IntegrityError: it is missing, no JSON, or no object.
    """
    try:
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise IntegrityError(f"{path}: can't be read ({error.strerror or error}): {remedy}") from error
    except ValueError as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): {remedy}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: is no JSON object: {remedy}")
    return value
