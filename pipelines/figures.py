"""The key figures of all steps in one file, small enough for a table: what `dvc metrics` and `dvc exp show` read.

Usage: python -m pipelines.figures outputs --output outputs/figures.json

All figures of all steps would be more than a hundred columns. What a clock gave (tokens per second) is in it as well,
though nothing depends on it: timings lie beside the outputs, and are no dependency of this stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from ava_core.steps.schemes import SCHEMES
from ava_core.steps.spec import StepSpec
from ava_core.steps.table import STEPS


def gather(outputs: Path) -> dict[str, dict[str, float]]:
    """Headline figures by step, of a quantised model by `quantize-SCHEME`.

    Args:
        outputs: holds the steps' outputs under the names of the step table; what isn't there is left out.
    """
    folders = {name: outputs / spec.output for name, spec in STEPS.items() if not spec.choices}
    folders |= {f"quantize-{scheme}": outputs / STEPS["quantize"].output / scheme for scheme in SCHEMES}
    figures = {name: _read(folder, STEPS[name.partition("-")[0]]) for name, folder in folders.items()}
    return {name: found for name, found in figures.items() if found}


def _read(folder: Path, spec: StepSpec) -> dict[str, float]:
    known: dict[str, float] = {}
    for path in (folder.with_name(f"{folder.name}.timings.json"), folder / "metrics.json"):
        with contextlib.suppress(FileNotFoundError):
            known |= json.loads(path.read_text(encoding="utf-8"))
    return {name: known[name] for name in spec.headlines if name in known}


def main() -> None:
    """Parse the command line and gather."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.figures", description="Gather the key figures.")
    parser.add_argument("outputs", type=Path, help="folder of the steps' outputs")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    flags = parser.parse_args()
    flags.output.write_text(json.dumps(gather(flags.outputs), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
