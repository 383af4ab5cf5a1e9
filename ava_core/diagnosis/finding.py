"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ava_core.errors import one_line
from ava_core.redaction import redact

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Attributes:
    status: `fail`: something that everyone needs won't work; `warn`: something will be slower, or some won't have it.
    what: the thing that was looked at.
    value: what was found there, on one line.
    way_out: what to do; empty where all is well.
    """

    status: Status
    what: str
    value: str
    way_out: str = ""

    def line(self) -> str:
        """As people read it, without secrets."""
        end = f" - {self.way_out}" if self.way_out else ""
        return redact(one_line(f"{self.status:<4}  {self.what}: {self.value}{end}"))

    def as_json(self) -> dict[str, str]:
        """For a bug report, without secrets."""
        values = {"status": self.status, "what": self.what, "value": self.value, "way_out": self.way_out}
        return {name: redact(one_line(value)) for name, value in values.items()}


def ok(what: str, value: str) -> Finding:
    """All is well."""
    return Finding("ok", what, value)


def warn(what: str, value: str, way_out: str) -> Finding:
    """Something goes worse than it could, or not for all."""
    return Finding("warn", what, value, way_out)


def fail(what: str, value: str, way_out: str) -> Finding:
    """Something can't work."""
    return Finding("fail", what, value, way_out)


def failed(what: str, error: Exception) -> Finding:
    """An error of Ava's, whose message ends with the way out."""
    value, _, way_out = str(error).partition("\n")[0].rpartition(": ")
    return fail(what, value or way_out, way_out if value else "see above")
