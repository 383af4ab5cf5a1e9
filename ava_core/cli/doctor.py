"""`ava doctor`: what may be wrong here before anything runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report; it holds no secrets.")] = False,
) -> int:
    """Look at Python, packages, kernels, memory, disks, servers and settings; exit 1 if something fails.

    One line each: ok, warn or fail, what it is, and the way out.
    """
    import ava_core
    from ava_core.diagnosis import Place, examine

    findings = examine(Place.here())
    healthy = all(finding.status != "fail" for finding in findings)
    if as_json:
        told = {"ava": ava_core.__version__, "ok": healthy, "findings": [finding.as_json() for finding in findings]}
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        for finding in findings:
            print(finding.line())
    return 0 if healthy else 1
