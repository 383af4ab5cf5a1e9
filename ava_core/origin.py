"""origin.json: where a model that another maker trained comes from, and under which licence it may be used.

`ava import` writes it beside the weights; whatever is made from that model carries it on, with the licence's own text.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json, write_json

FILE = "origin.json"
TEXTS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Files that a licence asks to be passed on."""
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: `hub:OWNER/NAME`, or the name of a folder.
        revision: the commit on the hub; empty for a folder.
        architecture: `model_type` of the source.
        files: bytes and SHA-256 of each file that was read, by name.
        licence: `id` as the model card has it (SPDX in lower case, or `other` with `name` and `link`), and where that
            is `stated`; the id is `unknown` where nothing states one.
        changes: what was done to the source, in words.
        before: the origin of the source, if that was imported itself.
    """

    name: str
    revision: str = ""
    architecture: str
    files: dict[str, dict[str, Any]]
    licence: dict[str, str]
    changes: tuple[str, ...]
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Name and revision, as `ava import` takes them."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def licence_id(self) -> str:
        """The licence in a word."""
        return self.licence.get("name") or self.licence["id"]

    def __str__(self) -> str:
        name = f"{self.name}@{self.revision[:12]}" if self.revision else self.name
        return f"from {name} ({self.architecture}), licence {self.licence_id}"


def write_origin(folder: Path, origin: Origin) -> None:
    """Write origin.json into `folder`."""
    source = {name: getattr(origin, name) for name in ("name", "revision", "architecture", "files")}
    record = {"source": source, "licence": origin.licence, "changes": list(origin.changes)}
    write_json(folder / FILE, record | ({"before": origin.before} if origin.before else {}))


def read_origin(folder: Path) -> Origin | None:
    """Where the model in `folder` comes from; None for one that was trained here from the beginning.

    Raises:
        IntegrityError: origin.json can't be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = parse_json(path.read_bytes())
        licence = {str(key): str(value) for key, value in record["licence"].items()}
        licence["id"]
        return Origin(
            **record["source"], licence=licence, changes=tuple(record["changes"]), before=record.get("before", {})
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: can't be read ({first_line(error)}): restore the folder") from error


def licence_texts(folder: Path) -> list[Path]:
    """The files in `folder` that the licence asks to be passed on, sorted."""
    return sorted({path for pattern in TEXTS for path in folder.glob(pattern) if path.is_file()})


def carry_origin(source: Path, folder: Path) -> None:
    """Copy to `folder` what tells where the model in `source` comes from, and its licence; nothing where nothing is."""
    for path in (*licence_texts(source), source / FILE):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
