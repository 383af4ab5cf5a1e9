"""The safetensors of a model folder in Transformers' layout: which files there are, and reading one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (SINGLE, INDEX)
"""The weights, or the index of the files that they are spread over."""


def find_weights(folder: Path, remedy: str) -> tuple[list[Path], Mapping[str, Path]] | None:
    """The files, sorted, and by an index what lies in which; None where there is neither weights nor index.

    Args:
        folder: to look in; what an index names lies in it too.
        remedy: the way out, for messages.

    Raises:
        IntegrityError: the index can't be read, or names a file that isn't there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if not (folder / INDEX).is_file():
        return None
    placed = {name: folder / file for name, file in _read_index(folder / INDEX, remedy).items()}
    files = sorted(set(placed.values()))
    for file in files:
        if not file.is_file():
            raise IntegrityError(f"{file}: is missing, though {INDEX} names it: {remedy}")
    return files, placed


@contextmanager
def opened(file: Path, remedy: str) -> Iterator[Any]:
    """One of them, mapped; closed again after the block, so that no more of it stays mapped than is in use.

    Raises:
        IntegrityError: it can't be read.
    """
    try:
        with safe_open(str(file), framework="pt", device="cpu") as found:
            yield found
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{file}: can't be read as safetensors ({first_line(error)}): {remedy}") from error


def _read_index(path: Path, remedy: str) -> dict[str, str]:
    try:
        placed = parse_json(path.read_bytes())["weight_map"]
        found = {str(name): str(file) for name, file in placed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): {remedy}") from error
    for file in found.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise IntegrityError(f"{path}: names the file {file!r}: must be a safetensors beside it")
    return found
