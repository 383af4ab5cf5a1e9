"""What the pipeline costs beside the work of its steps, and how long a run takes in which nothing has changed.

Usage: python -m benchmarks.pipeline [--runner host|docker] [--config configs/cpu/tiny.yaml] [--set KEY=VALUE]...

Runs `python -m pipelines.local` twice with an empty work folder. The overhead is the first run's time by the clock,
from the start of the interpreter to its end, less the sum of the steps' own `wall_seconds`: the interpreter, compiling,
kfp.local, processes or containers, imports of the command line, digests of inputs, copies of outputs. The local MLflow
server is started before, for it outlives the runs. Exits 1 if a bound of BOUNDS is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ava_core.config.hardware import usable_cores
from benchmarks import hardware, report
from pipelines import mlflow_server

BOUNDS = {"host": 0.10, "docker": 0.15}
"""Largest share of the overhead in the first run's time."""
RERUN_SECONDS = 15.0
ROW = re.compile(r"^([a-z][a-z0-9.-]*) +succeeded +([0-9.]+)", flags=re.MULTILINE)


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds by the clock, and what was printed."""
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"the pipeline ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return seconds, done.stdout


def own_seconds(folder: Path) -> float:
    """What a task's step says that its own work took; 0 for one without a clock."""
    return sum(json.loads(file.read_text())["wall_seconds"] for file in folder.glob("*.timings.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run twice, print the figures and keep them."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.split("\n")[0])
    flags.add_argument("--runner", choices=sorted(BOUNDS), default="host")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    known, passed_on = flags.parse_known_args(arguments)
    address = mlflow_server.ensure()
    with tempfile.TemporaryDirectory(prefix="ava-bench-") as name:
        runs = Path(name, "runs")
        command = [sys.executable, "-m", "pipelines.local", "--runner", known.runner, "--runs", str(runs), *passed_on]
        environment = {**os.environ, "AVA_WORK": str(Path(name, "work")), "AVA_TRACKING_URI": address}
        first, printed = run(command, environment)
        (folder,) = runs.glob("ava-*")
        tasks = {task: (float(seconds), own_seconds(folder / task)) for task, seconds in ROW.findall(printed)}
        again, _ = run(command, environment)
    work = sum(own for _, own in tasks.values())
    around = first - sum(seconds for seconds, _ in tasks.values())
    rows = [[task, f"{seconds:.1f}", f"{own:.1f}", f"{seconds - own:.1f}"] for task, (seconds, own) in tasks.items()]
    rows += [["around the steps", f"{around:.1f}", "", f"{around:.1f}"]]
    rows += [["total", f"{first:.1f}", f"{work:.1f}", f"{first - work:.1f}"]]
    print(report.table(("step", "seconds", "own work", "overhead"), rows))
    share, bound = (first - work) / first, BOUNDS[known.runner]
    described = hardware.describe("cpu", usable_cores())
    values = {"seconds": first, "own_seconds": work, "overhead": share, "rerun_seconds": again, "tasks": tasks}
    report.keep(hardware.slug(described), f"pipeline, {known.runner}", described, values, known.results)
    print(f"overhead: {share:.1%} of {first:.1f} s ({known.runner}; at most {bound:.0%})")
    print(f"again, with nothing changed: {again:.1f} s (at most {RERUN_SECONDS:.0f} s)")
    return 0 if share < bound and again < RERUN_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
