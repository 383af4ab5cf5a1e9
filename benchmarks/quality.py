"""Training from scratch in a given time: how good is the model? Ours against a plain GPT, dense models and AdamW.

Usage: make bench-quality, or python -m benchmarks.quality [--rows short,dense,optimizers,five,fifteen] [--seeds 3]

Each training is a process of its own (`ava train`, as a user would call it) and they run one after the other: nothing
else may run on the machine. Scores are bits per byte of the validation part: nats / ln 2 / bytes, every byte once, in
windows that don't overlap, with the training context. The clock runs from the first step to the last, evaluations
left out; the start-up of the process is printed beside it. Results are kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import hardware, quality_settings, report
from benchmarks.corpora import TINY_SHAKESPEARE, shards_by_position
from benchmarks.training_run import Finished, run_baseline, run_training

ROWS = ("short", "dense", "optimizers", "five", "fifteen")
PLAYS = Path("outputs/shards")
AIMS = {
    "nanogpt_cpu": "nanoGPT's CPU recipe ends at 2.72 bits per byte after 61 s: the same in <= 8 s, <= 2.20 at 61 s",
    "nanogpt_gpu": "nanoGPT's GPU recipe ends at 2.12: <= 2.12 in 5 minutes, <= 2.05 in 15",
    "dense": "MoE++ lower than dense by >= 0.05 bits per byte at 5 minutes",
    "optimizers": "AdamW's final figure in <= 0.6 of its time",
}


class Bench:
    """The runs of this benchmark, in a folder that is thrown away."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.threads = threads

    def tiny(self, settings: dict[str, Any], seed: int) -> Finished:
        """Train on tinyshakespeare."""
        vocab_size = settings["vocab_size"]
        shards = shards_by_position(TINY_SHAKESPEARE.read_text(), vocab_size, self.folder / f"shards-{vocab_size}")
        return run_training(shards, settings, seed, self.threads, self.folder)

    def plays(self, settings: dict[str, Any], seed: int) -> Finished:
        """Train on the embedded corpus."""
        return run_training(PLAYS, settings, seed, self.threads, self.folder)


def short(bench: Bench, seeds: int) -> dict[str, Any]:
    """The plain GPT, and ours in 8 and in 61 seconds."""
    found = {"char_gpt": [run_baseline(TINY_SHAKESPEARE, seed, bench.threads) for seed in range(seeds)]}
    for name, seconds in (("ours_8s", 8), ("ours_61s", 61)):
        settings = quality_settings.tiny(seconds)
        found[name] = [bench.tiny(settings, seed) for seed in range(seeds)]
    return _show("tinyshakespeare, short", found, AIMS["nanogpt_cpu"])


def five(bench: Bench, seeds: int) -> dict[str, Any]:
    """Ours in 5 minutes; one seed."""
    return _long(bench, 5)


def fifteen(bench: Bench, seeds: int) -> dict[str, Any]:
    """Ours in 15 minutes; one seed."""
    return _long(bench, 15)


def _long(bench: Bench, minutes: int) -> dict[str, Any]:
    found = {f"ours_{minutes}min": [bench.tiny(quality_settings.tiny(60 * minutes), seed=0)]}
    return _show(f"tinyshakespeare, {minutes} minutes", found, AIMS["nanogpt_gpu"])


def dense(bench: Bench, seeds: int) -> dict[str, Any]:
    """MoE++ against a dense model of the same active parameters, 5 minutes each; one seed."""
    found = {
        "moe_5min": [bench.plays(quality_settings.moe(), seed=0)],
        "dense_5min": [bench.plays(quality_settings.dense(), seed=0)],
    }
    return _show("embedded corpus, MoE++ against dense", found, AIMS["dense"])


def optimizers(bench: Bench, seeds: int) -> dict[str, Any]:
    """Each optimiser after a sweep of its rates, equally many trainings; then the best of ours in less time."""
    seconds = quality_settings.SWEEP_SECONDS
    found: dict[str, list[Finished]] = {}
    best: dict[str, tuple[float, str]] = {}
    for name, rates in quality_settings.SWEEP.items():
        for factor in rates:
            label = f"{name} x {factor:g}"
            found[label] = [bench.plays(quality_settings.optimizer(name, factor, seconds), seed=0)]
            best[name] = min(best.get(name, (9.0, "")), (found[label][0].bits_per_byte, label))
    ours = min((score, name) for name, (score, _) in best.items() if name != "adamw")[1]
    factor = float(best[ours][1].split(" x ")[1])
    for share in (0.6, 0.5):
        label = f"{ours} x {factor:g}, {share:g} of the time"
        found[label] = [bench.plays(quality_settings.optimizer(ours, factor, share * seconds), seed=0)]
    print(f"AdamW's best: {best['adamw'][1]}, {best['adamw'][0]:.4f} bits per byte after {seconds:g} s")
    return _show("embedded corpus, optimisers", found, AIMS["optimizers"])


def _show(title: str, found: dict[str, list[Finished]], aim: str) -> dict[str, Any]:
    header = ("", "bits per byte", "of each seed", "seconds", "start-up", "steps", "tokens/s")
    rows = []
    for name, runs in found.items():
        scores = [run.bits_per_byte for run in runs]
        rows.append(
            (
                name,
                f"{statistics.mean(scores):.4f}",
                " ".join(f"{score:.3f}" for score in scores) if len(scores) > 1 else "",
                f"{statistics.mean(run.seconds for run in runs):.1f}",
                f"{statistics.mean(run.startup_seconds for run in runs):.1f}",
                f"{statistics.mean(run.steps for run in runs):.0f}",
                f"{statistics.mean(run.tokens_per_second for run in runs):,.0f}",
            )
        )
    print(f"\n{title} ({aim})\n{report.table(header, rows)}", flush=True)
    return {name: [run.as_dict() for run in runs] for name, runs in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    flags.add_argument(
        "--rows", default=",".join(ROWS), help="rows to measure, with commas between (default: %(default)s)"
    )
    flags.add_argument("--seeds", type=int, default=3, help="seeds of each of the short rows (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of a process")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    given = flags.parse_args(arguments)
    rows = given.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        flags.error(f"--rows {unknown[0]}: must be of {', '.join(ROWS)}")
    if {"short", "five", "fifteen"} & set(rows) and not TINY_SHAKESPEARE.exists():
        flags.error("tinyshakespeare.txt: not in ../shared/corpora here: give --rows dense,optimizers")
    if {"dense", "optimizers"} & set(rows) and not (PLAYS / "manifest.json").exists():
        flags.error(f"{PLAYS}: no shards of the embedded corpus: run `make pipeline-local` or `make repro` first")
    described = hardware.describe("cpu", given.threads)
    print(hardware.line(described))
    with tempfile.TemporaryDirectory(prefix="ava-quality-") as folder:
        bench = Bench(Path(folder), given.threads)
        for row in rows:
            values = {"runs": globals()[row](bench, given.seeds)}
            report.keep(hardware.slug(described), f"quality, {row}", described, values, given.results)
    print(f"kept in {given.results.name}/{hardware.slug(described)}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
