"""One evaluation that is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ava_core.evaluation import losses
from ava_core.evaluation.losses import Losses
from ava_core.runtime import manifest
from ava_core.runtime.reading import read_object


@dataclass(frozen=True, kw_only=True)
class Side:
    """An evaluation with what is known about its model.

    Attributes:
        name: what the user called it.
        digest: of the evaluation's contents.
        contents: evaluation.json.
        losses: losses.jsonl.
        shards: digest of the shards that it was made on.
        parameters: the configuration of the whole pipeline, by dotted key, where it is known: a folder holds none.
    """

    name: str
    digest: str
    contents: Mapping[str, Any]
    losses: Losses
    shards: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """`float`, and the schemes of the quantised ones."""
        return list(self.losses.sums)


def read_side(name: str, folder: Path, parameters: Mapping[str, str] | None = None) -> Side:
    """Read an output of `ava evaluate`, verified.

    Raises:
        AvaError: it is the output of another step.
        IntegrityError: a file is damaged, or an older Ava wrote it, without losses by document.
    """
    with manifest.verified(folder):
        made = manifest.verify(folder, "evaluate")
        contents = read_object(folder / "evaluation.json", "run `ava evaluate` again")
        found = losses.read(folder)
    return Side(
        name=name,
        digest=made.digest,
        contents=contents,
        losses=found,
        shards=made.inputs.get("shards", ""),
        parameters=parameters or {},
    )
