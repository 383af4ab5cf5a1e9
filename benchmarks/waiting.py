"""How threads that wait for each other cost on a quiet and on a busy machine: training steps and decoded tokens.

Usage: python -m benchmarks.waiting [--load 0 --load 4] [--rounds N] [--quantized FOLDER]

Every subject is a process with one way of waiting, and they take turns: one thread; Ava's own settings
(`ava_core.config.threads.WAITING`, `ava_core.onnx.shape.SESSION_OPTIONS`); asleep at once; spinning for some time
before they sleep; spinning as libgomp and ONNX Runtime do by default. With `--load 4` four other processes want the
cores all the time. Prints tokens per second and the ratio to one thread at the same load, and keeps them in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ava_core.config.threads import WAITING
from benchmarks import hardware, report
from benchmarks.turns import Workers, take_turns
from benchmarks.workload import from_preset

ONE = "1 thread"
OWN = "Ava's settings"
SPINS = (1_000, 10_000, 100_000, 300_000)
"""Of libgomp: rounds of its loop, a few nanoseconds each; the last is what it does by itself."""
SPIN_MICROSECONDS = (20, 100, 1_000)
"""Of ONNX Runtime."""
PROMPT, NEW_TOKENS, SEQUENCES = 32, 96, 8


class Decoding:
    """Worker: greedy tokens of one sequence through the decoder of `ava quantize`.

    Args:
        folder: output of `ava quantize`.
        threads: CPU threads.
        options: of ONNX Runtime's session, beside our own; None: our own alone.
    """

    def __init__(self, folder: str, threads: int, options: Mapping[str, str] | None) -> None:
        from ava_core.onnx import shape
        from benchmarks.inference_subjects import Onnx

        if options is not None:
            for name in [name for name in shape.SESSION_OPTIONS if "spin" in name]:
                del shape.SESSION_OPTIONS[name]
            shape.SESSION_OPTIONS.update(options)
        self.decoder = Onnx(folder, threads)

    def turn(self, steps: int) -> dict[str, Any]:
        """tokens_per_second over some sequences for each step."""
        rates = [self.decoder.decode(PROMPT, NEW_TOKENS)["rate"] for _ in range(SEQUENCES * steps)]
        return {"tokens_per_second": statistics.harmonic_mean(rates)}


def training(threads: int) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """Subjects of a training step of cpu/tiny: name, factory, arguments, environment."""
    work = dataclasses.asdict(from_preset("cpu/tiny", "cpu"))

    def subject(name: str, environment: Mapping[str, str], threads: int = threads) -> tuple[Any, ...]:
        arguments = {"name": "ours_moepp", "workload": work, "threads": threads}
        return name, "benchmarks.subjects:TrainingStep", arguments, dict(environment)

    spinning = [subject(f"spins {count:,}", {"GOMP_SPINCOUNT": f"{count}"}) for count in SPINS]
    asleep = subject("asleep at once", {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"})
    return [subject(ONE, WAITING, 1), subject(OWN, WAITING), asleep, *spinning]


def decoding(folder: Path, threads: int) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """Subjects of decoding, as in `training`."""

    def subject(name: str, options: Mapping[str, str] | None, threads: int = threads) -> tuple[Any, ...]:
        arguments = {"folder": str(folder), "threads": threads, "options": options}
        return name, "benchmarks.waiting:Decoding", arguments, {}

    spinning = [
        subject(f"spins {time:,} us", {"session.intra_op.spin_duration_us": f"{time}"}) for time in SPIN_MICROSECONDS
    ]
    asleep = subject("asleep at once", {"session.intra_op.allow_spinning": "0"})
    return [subject(ONE, None, 1), subject(OWN, None), asleep, *spinning, subject("as ONNX Runtime does", {})]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes that want a core all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(
    subjects: Sequence[tuple[Any, ...]], loads: Sequence[int], rounds: int, steps: int
) -> dict[int, dict[str, list[float]]]:
    """Tokens per second of each round, by load and subject.

    Raises:
        SystemExit: a subject failed.
    """
    found = {}
    environments = {name: environment for name, _, _, environment in subjects}
    with Workers([subject[:3] for subject in subjects], environments=environments) as workers:
        for load in loads:
            with busy(load):
                turns = take_turns(workers, rounds, 1, steps)
            if workers.failures:
                raise SystemExit("; ".join(workers.failures.values()))
            found[load] = {name: [turn["tokens_per_second"] for turn in given] for name, given in turns.items()}
    return found


def show(what: str, found: Mapping[int, Mapping[str, Sequence[float]]]) -> str:
    """Medians, and median ratios to one thread, of each load."""
    loads = list(found)
    rows = []
    for name in found[loads[0]]:
        cells = [name]
        for load in loads:
            ratio = report.paired_ratio(found[load][name], found[load][ONE])
            cells += [f"{statistics.median(found[load][name]):,.0f}", f"x {ratio.median:.2f}"]
        rows.append(cells)
    header = [f"{what}, tokens/s", *(cell for load in loads for cell in (f"load {load}", "of 1 thread"))]
    return report.table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--load", type=int, action="append", help="other busy processes; repeatable (default: 0 and 4)")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--steps", type=int, default=4, help="training steps of a turn; of decoding, 8 sequences each")
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    flags.add_argument("--quantized", type=Path, default=Path("outputs/quantized/int8"), help="output of ava quantize")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    given = flags.parse_args(arguments)
    loads = given.load or [0, 4]
    described = hardware.describe("cpu", given.threads)
    print(hardware.line(described))
    parts = {"training cpu/tiny": training(given.threads)}
    if given.quantized.is_dir():
        parts["decoding"] = decoding(given.quantized.resolve(), given.threads)
    else:
        print(f"left out: decoding: {given.quantized}: no such folder: give the output of ava quantize")
    values = {}
    for what, subjects in parts.items():
        values[what] = measure(subjects, loads, given.rounds, given.steps)
        print(f"\n{show(what, values[what])}")
    path = report.keep(hardware.slug(described), "waiting threads", described, values, given.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
