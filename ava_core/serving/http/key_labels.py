"""Which access labels an API key has, from a file that holds no key."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ava_core.errors import ConfigError, one_line, shorten
from ava_core.files import parse_json
from ava_core.serving.http.admission import key_digest

FLAG = "--key-labels"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_key_labels(path: Path, keys: Sequence[str]) -> dict[str, frozenset[str]]:
    """Labels by SHA-256 of a key: `{"SHA-256 of a key in hexadecimal": ["label", ...]}`.

    Args:
        path: of the file.
        keys: those that the server knows.

    Raises:
        ConfigError: the file can't be read, isn't of that form, names what is no SHA-256 or that of no known key, or
            there are no keys.
    """
    if not keys:
        raise ConfigError(f"{FLAG} {path}: labels belong to API keys, and there are none: give --api-key-file")
    try:
        given = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{FLAG} {path}: can't be read as JSON ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError(f'{FLAG} {path}: must be an object like {{"SHA-256 of a key": ["label"]}}')
    known = frozenset(map(key_digest, keys))
    faults = [fault for digest, labels in given.items() for fault in _faults(digest, labels, known)]
    if faults:
        raise ConfigError(*(f"{FLAG} {path}: {fault}" for fault in faults))
    return {digest: frozenset(labels) for digest, labels in given.items()}


def _faults(digest: str, labels: Any, known: Collection[str]) -> list[str]:
    if not _DIGEST.fullmatch(digest):
        # It may be the key itself, by mistake: it isn't shown.
        return [f"an entry of {len(digest)} characters: must be a key's SHA-256, 64 digits in 0-9 and a-f"]
    faults = []
    if digest not in known:
        faults.append(f"{digest}: is the SHA-256 of no known key: mend it, or leave it out")
    if not (isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)):
        faults.append(f"{digest}: {shorten(one_line(repr(labels)), 64)}: must be a list of labels, none empty")
    return faults
