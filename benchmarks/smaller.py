"""Smaller models of a large one, each in bits per byte of the same held-out plays.

Usage: python -m benchmarks.smaller [--teacher-steps N] [--steps N] [--tuning-steps N] [--set key=value]

A large model learns the embedded corpus (`make data`). Then:
- a student of a fraction of its size learns the same text, with the large one as its teacher and without, from the same
  weights, in as many steps on the same batches;
- the large one loses a quarter of its experts, by load and by effect: before and after repair;
- two trainings go on from it with other seeds, and are averaged: soup and SLERP.

Prints the bits per byte of the whole validation part, and keeps them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.config import presets, resolve
from ava_core.data.corpora import SHAKESPEARE
from ava_core.files import parse_json
from ava_core.runtime import manifest
from benchmarks import hardware, report
from benchmarks.continuation import RATES, train
from benchmarks.corpora import shards_of_files

STUDENT = {"model.hidden_size": 64, "model.num_layers": 2, "model.num_ffn_experts": 8}
PRUNED_SHARE, TEACHER_WEIGHT, TUNING_RATE = 0.25, 0.5, 0.1


def ava(*words: str | Path) -> None:
    """A command of Ava's in a process of its own."""
    command = [sys.executable, "-m", "ava_core.cli.main", *map(str, words), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ava {words[0]} ended with {done.returncode}\n{done.stderr[-2000:]}")


def bits_per_byte(model: Path, shards: Path) -> float:
    """Of the whole validation part; a training has measured it at its end."""
    measured = parse_json((model / "metrics.json").read_bytes())
    if manifest.read(model).step == "train":
        return measured["validation_bits_per_byte"]
    from ava_core.config.train import TrainConfig
    from ava_core.data.shards import ShardedSplit
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained
    from ava_core.training.validation import SplitValidation

    loaded, _ = load_pretrained(EnhancedMoEForCausalLM, model)
    length = parse_json((model / "training.json").read_bytes())["sequence_length"]
    config = TrainConfig(sequence_length=length, micro_batch_size=16, global_batch_size=16)
    measured = SplitValidation(ShardedSplit.open(shards, "validation"), config).measure(loaded, whole=True)
    return measured["validation_bits_per_byte"]


def distilled(teacher: Path, shards: Path, steps: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Two students, one of them with the teacher."""
    small = {**settings, **STUDENT}
    taught = {**small, "train.teacher.model": teacher, "train.teacher.weight": TEACHER_WEIGHT}
    return {
        "student alone": train("student", shards, steps, small, folder),
        "student with the teacher": train("taught", shards, steps, taught, folder),
    }


def averaged(large: Path, shards: Path, steps: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Two trainings that go on from the large model, and their means."""
    lower = {**settings, **{f"train.{name}": TUNING_RATE * value for name, value in _rates(settings).items()}}
    found = {
        f"fine-tuned, seed {seed}": train(f"tuned-{seed}", shards, steps, {**lower, "seed": seed}, folder, init=large)
        for seed in (1, 2)
    }
    parents = list(found.values())
    for method in ("soup", "slerp"):
        ava("average", *parents, "--method", method, "--output", folder / method)
        found[f"{method} of the two"] = folder / method
    return found


def pruned(large: Path, shards: Path, folder: Path) -> dict[str, Path]:
    """The large model without a quarter of its experts."""
    found = {}
    for by in ("load", "effect"):
        for repair, words in (("none", "pruned"), ("refit", "pruned and repaired")):
            name = f"{by}-{repair}"
            options = ("--share", str(PRUNED_SHARE), "--by", by, "--repair", repair)
            ava("prune", "--model", large, "--shards", shards, *options, "--output", folder / name)
            found[f"{words} by {by}"] = folder / name
    return found


def _rates(settings: Mapping[str, Any]) -> dict[str, float]:
    config = resolve(overrides=[f"{key}={value}" for key, value in settings.items()]).config
    return {name: getattr(config.train, name) for name in RATES}


def show(figures: Mapping[str, float], parameters: Mapping[str, int], large: str) -> str:
    """The table that is printed."""
    rows = [
        [name, f"{parameters[name] / 1e6:.2f} M", f"{value:.4f}", f"{value - figures[large]:+.4f}"]
        for name, value in figures.items()
    ]
    return report.table(("model", "parameters", "bits per byte", "against the large one"), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.smaller", description=__doc__.split("\n")[0])
    for name, steps, text in (
        ("--teacher-steps", 600, "optimiser steps of the large model"),
        ("--steps", 400, "of each student"),
        ("--tuning-steps", 100, "of each of the two that go on from the large one"),
    ):
        flags.add_argument(name, type=int, default=steps, help=f"{text} (default: %(default)s)")
    flags.add_argument("--preset", choices=presets.names(), default="cpu/tiny")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all of them, print and keep."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if min(flags.teacher_steps, flags.steps, flags.tuning_steps) < 2:
        command_line.error("--teacher-steps, --steps and --tuning-steps must be > 1")
    plays = SHAKESPEARE.verify(flags.data / SHAKESPEARE.name)
    settings: dict[str, Any] = {"preset": flags.preset, **dict(item.split("=", 1) for item in flags.overrides)}
    config = resolve(overrides=[f"{key}={value}" for key, value in settings.items()]).config
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    with tempfile.TemporaryDirectory(prefix="ava-smaller-") as name:
        folder = Path(name)
        shards = shards_of_files(plays, config.tokenizer.vocab_size, folder / "shards")
        large = train("large", shards, flags.teacher_steps, settings, folder)
        models = {"the large one": large}
        models |= distilled(large, shards, flags.steps, settings, folder)
        models |= pruned(large, shards, folder)
        models |= averaged(large, shards, flags.tuning_steps, settings, folder)
        figures = {label: bits_per_byte(model, shards) for label, model in models.items()}
        parameters = {
            label: int(parse_json((model / "metrics.json").read_bytes())["parameters"])
            for label, model in models.items()
        }
    print(show(figures, parameters, "the large one"))
    values = {
        "settings": settings,
        "steps": {"large": flags.teacher_steps, "students": flags.steps, "tuning": flags.tuning_steps},
        "validation_bits_per_byte": figures,
        "parameters": parameters,
    }
    path = report.keep(hardware.slug(described), f"smaller, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
