"""What every part of the check is told, and what it answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Attributes:
    device: "cuda" or "cpu".
    tiny: presets and shapes for a CPU of two cores instead of gpu/base and gpu/large.
    threads: CPU threads of each process.
    folder: where parts leave what later ones read: shards, models.
    data: where `make data` puts the corpus; without it a text is made up.
    """

    device: str
    tiny: bool
    threads: int
    folder: Path
    data: Path

    @property
    def preset(self) -> str:
        """What is trained, exported and resumed."""
        return "cpu/tiny" if self.tiny else "gpu/base"

    @property
    def shards(self) -> Path:
        """What is trained on."""
        return self.folder / "shards"

    @property
    def model(self) -> Path:
        """What the training leaves."""
        return self.folder / "model"

    def to_json(self) -> str:
        """For a part's process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` gave."""
        values = json.loads(text)
        return cls(**values | {name: Path(values[name]) for name in ("folder", "data")})


@dataclass(kw_only=True)
class Outcome:
    """Attributes:
    figures: what was measured.
    faults: why the part failed, a line each; none if it passed.
    skipped: why it wasn't done; empty if it was.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    def at_most(self, name: str, value: float, bound: float) -> None:
        """A fault if the value is above the bound, or no number."""
        if not value <= bound:
            self.faults.append(f"{name} = {value:.4g}: must be <= {bound:g}")

    @property
    def verdict(self) -> str:
        """passed, failed or skipped."""
        return "failed" if self.faults else "skipped" if self.skipped else "passed"
