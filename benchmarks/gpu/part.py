"""One part of the check in a process of its own: python -m benchmarks.gpu.part NAME PLAN RESULT."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.plan import Outcome, Plan

PARTS: dict[str, tuple[str, float]] = {
    "environment": ("environment:run", 15),
    "kernels": ("numerics:run", 60),
    "training": ("training:run", 65),
    "resume": ("training:resume", 85),
    "export": ("exporting:run", 45),
    "base": ("speed:base", 35),
    "base compiled": ("speed:base_compiled", 60),
    "large": ("speed:large", 40),
    "large compiled": ("speed:large_compiled", 75),
}
"""What computes each part, below benchmarks.gpu, and its share of the time. What it leaves, the next ones have."""


def main(arguments: Sequence[str]) -> None:
    """Compute the part and write its outcome, whatever it comes to."""
    name, plan, result = arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    module, _, function = PARTS[name][0].partition(":")
    try:
        outcome: Outcome = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(Plan.from_json(plan))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        outcome = Outcome(faults=[f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"])
    Path(result).write_text(json.dumps({"verdict": outcome.verdict, **asdict(outcome)}))


if __name__ == "__main__":
    main(sys.argv[1:])
