"""Whether Ava holds on a GPU, and how fast, in one command of at most 8 minutes.

Usage: python -m benchmarks.gpu [--device cuda|cpu] [--tiny] [--output FILE] [--minutes N] [--parts NAME,NAME]

Checks the layers in bfloat16 against float32, trains gpu/base for 50 steps, kills and resumes that training, exports
the checkpoint, and compares a training step with HF's OLMoE (grouped_mm) at gpu/base and gpu/large, compiled and not.
Each part runs in a process of its own with a limit of time; its result is in the JSON file as soon as it ends. A part
that fails says why there, and the others go on. Exits 1 if one failed. `--device cpu --tiny` is the same in small.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ava_core.files import write_json
from benchmarks import report
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.plan import Outcome, Plan

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 7.75
"""For all parts together, so that the command ends within 8 minutes."""
LOG_CHARACTERS = 2000
"""Of what a part printed last, kept beside its faults."""


def run_part(name: str, plan: Plan, limit: float) -> dict[str, Any]:
    """A part's outcome, with `seconds`; past `limit` seconds its processes are killed."""
    result, log = plan.folder / "result.json", plan.folder / f"{name}.log"
    result.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.gpu.part", name, plan.to_json(), str(result)]
    started = time.monotonic()
    with log.open("wb") as file:
        # A session of its own, so that what it starts can be ended with it.
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
            faults = [f"its process ended with {code}"]
        except subprocess.TimeoutExpired:
            faults = [f"took more than {limit:.0f} s: give it more --minutes"]
        finally:
            _end_group(process)
    found: dict[str, Any] = {"verdict": "failed", "figures": {}, "faults": faults, "skipped": ""}
    if result.exists():
        found = json.loads(result.read_text())
    if found["faults"]:
        found["log"] = log.read_text(errors="replace")[-LOG_CHARACTERS:]
    return {**found, "seconds": time.monotonic() - started}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the part has left running, in its own session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def run(plan: Plan, names: Sequence[str], minutes: float, output: Path) -> bool:
    """Run the parts, write the file after each, print a line for each. Returns whether none failed."""
    found: dict[str, Any] = {"device": plan.device, "tiny": plan.tiny, "passed": False, "parts": {}}
    scale = 60 * minutes / sum(PARTS[name][1] for name in names)
    left = 0.0
    for name in names:
        limit = left + scale * PARTS[name][1]
        part = run_part(name, plan, limit)
        left = max(0.0, limit - part["seconds"])
        found["parts"][name] = {**part, "limit_seconds": limit}
        found["seconds"] = sum(each["seconds"] for each in found["parts"].values())
        found["passed"] = len(found["parts"]) == len(names) and not _failed(found)
        write_json(output, found)
        notes = part["faults"] or ([part["skipped"]] if part["skipped"] else [])
        print(f"{name:<15} {part['verdict']:<8} {part['seconds']:>6.1f} s of {limit:.0f}", flush=True)
        print(*(f"    {note}" for note in notes), sep="\n", end="\n" if notes else "", flush=True)
    print(summary(found))
    return found["passed"]


def _failed(found: dict[str, Any]) -> list[str]:
    return [name for name, part in found["parts"].items() if part["verdict"] == Outcome(faults=["one"]).verdict]


def summary(found: dict[str, Any]) -> str:
    """The table of the comparisons, and how many parts failed."""
    rows = []
    for name, part in found["parts"].items():
        for subject, figures in part["figures"].get("subjects", {}).items():
            over = part["figures"]["over_peer"].get(subject)
            rows.append(
                [
                    f"{part['figures']['workload']['label']}: {subject}",
                    f"{figures['step_milliseconds']:,.1f}",
                    f"{figures['peak_bytes'] / 2**30:.2f}",
                    f"{figures['share_of_mean_peak']:.3f}" if "share_of_mean_peak" in figures else "-",
                    f"{over['tokens_per_second']:.2f}" if over else "",
                    f"{over['peak_bytes']:.2f}" if over else "",
                ]
            )
        if "last_loss" in part["figures"]:
            print(f"{name}: loss {part['figures']['first_loss']:.3f} to {part['figures']['last_loss']:.3f}")
    header = ("training step", "ms", "GiB", "of peak", "speed / HF", "memory / HF")
    failed = _failed(found)
    ends = f"{len(found['parts'])} parts in {found['seconds']:.0f} s; failed: {', '.join(failed) or 'none'}"
    return "\n".join([*([report.table(header, rows)] if rows else []), ends])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 1 if a part failed."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    flags.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    flags.add_argument("--tiny", action="store_true", help="small presets and shapes, for a CPU")
    flags.add_argument("--output", type=Path, default=Path("build/gpu.json"), help="file (default: %(default)s)")
    flags.add_argument("--minutes", type=float, default=MINUTES, help="for all parts (default: %(default)s)")
    flags.add_argument("--parts", default=",".join(PARTS), help="with commas between (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    given = flags.parse_args(arguments)
    names = given.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        flags.error(f"--parts = {', '.join(unknown)}: must be of {', '.join(PARTS)}")
    if given.device == "cpu" and not given.tiny:
        flags.error("--device = cpu: needs --tiny: gpu/base is no work for a CPU")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ava-gpu-") as name:
        plan = Plan(
            device=given.device,
            tiny=given.tiny,
            threads=given.threads,
            folder=Path(name),
            data=given.data.resolve(),
        )
        passed = run(plan, names, given.minutes, given.output)
    print(report.kept_in(given.output.resolve()))
    return 0 if passed else 1


def _end(*_: object) -> None:
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)  # so that the part is ended before this process
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
