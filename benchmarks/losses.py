"""What each optional part of the loss does to the model, good or bad.

Usage: python -m benchmarks.losses [--steps N] [--parts focal,repetition] [--preset cpu/tiny]

Trains one model without any optional part and one with each of them, by `ava train`: the same preset, steps, seed and
batches, on outputs/shards as `ava preprocess` leaves it (the embedded corpus). Prints bits per byte of the whole
validation split (always of the plain cross-entropy), how much the models repeat themselves and how varied their words
are, of greedy and of nucleus samples, and seconds per step, and keeps them in benchmarks/results/.

A repetition of 0.5 says that half of a text's 4-grams of words occurred in it before. Differences between two models of
different seeds are some 0.01 bits per byte: what is less than that is nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.config import presets
from ava_core.config.generation import GenerationConfig
from ava_core.evaluation.diversity import distinct, repetition
from benchmarks import hardware, report

NONE = "none"
PARTS: dict[str, dict[str, float]] = {
    NONE: {},
    "label_smoothing": {"train.loss.label_smoothing": 0.1},
    "temperature": {"train.loss.temperature": 1.5},
    "z_loss": {"train.loss.z_loss_weight": 1e-4},
    "focal": {"train.loss.focal_weight": 1.0},
    "repetition": {"train.loss.repetition_weight": 1.0},
    "ngram": {"train.loss.ngram_weight": 1.0},
    "early_end": {"train.loss.early_end_weight": 1.0},
    "multi_token": {"train.loss.multi_token_weight": 0.3, "train.loss.multi_token_depth": 2},
    "router_diversity": {"model.router_diversity_weight": 0.01},
}
"""Each optional part, and the fields that turn it on: the weights of its paper where that gives one."""
PROMPTS = ("To be, or", "ROMEO\nO, she doth", "Enter the KING", "HAMLET\nMy lord", "The time is", "What news")
STRATEGIES = ("greedy", "nucleus")
NEW_TOKENS = 128
HEADER = ("part", "bits/byte", "greedy rep-4", "distinct-2", "nucleus rep-4", "distinct-2", "s/step")


def train(name: str, flags: argparse.Namespace, folder: Path) -> Path:
    """`ava train` with one part on, in a process of its own. Returns the model's folder."""
    output = folder / name
    fields = {"preset": flags.preset, "train.steps": flags.steps, "seed": flags.seed, **PARTS[name]}
    fields["train.warmup_steps"] = min(20, flags.steps - 1)
    settings = [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
    inputs = ["--params", "params.yaml", "--shards", str(flags.shards), "--output", str(output)]
    command = [sys.executable, "-m", "ava_core.cli.main", "train", *inputs, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: ava train ended with {done.returncode}\n{done.stderr[-2000:]}")
    return output


def figures(folder: Path, tokens_per_step: int) -> dict[str, float]:
    """What the step measured, and the samples' repetition and variety by strategy."""
    from ava_core.generation.decoding import generate
    from ava_core.generation.loading import load_model

    metrics = json.loads((folder / "metrics.json").read_text())
    timings = json.loads(folder.with_name(f"{folder.name}.timings.json").read_text())
    found = {
        "validation_bits_per_byte": metrics["validation_bits_per_byte"],
        "seconds_per_step": tokens_per_step / timings["tokens_per_second"],
    }
    model, tokenizer = load_model(folder)
    for strategy in STRATEGIES:
        settings = GenerationConfig(max_new_tokens=NEW_TOKENS)
        texts = generate(model, tokenizer, list(PROMPTS), strategy=strategy, settings=settings, seed=0)
        found[f"{strategy}_repetition_4gram"] = repetition(texts)
        found[f"{strategy}_distinct_2"] = distinct(texts)
    return found


def show(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The table that is printed."""
    rows = []
    for name, values in measured.items():
        samples = [
            f"{values[f'{way}_{what}']:.3f}" for way in STRATEGIES for what in ("repetition_4gram", "distinct_2")
        ]
        rows.append([name, f"{values['validation_bits_per_byte']:.4f}", *samples, f"{values['seconds_per_step']:.3f}"])
    return report.table(HEADER, rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=500, help="optimiser steps of each model (default: %(default)s)")
    flags.add_argument(
        "--parts", help="parts to train with, with commas between; `none` is always among them (default: all)"
    )
    flags.add_argument("--preset", choices=presets.names(), default="cpu/tiny")
    flags.add_argument("--seed", type=int, default=1337)
    flags.add_argument("--shards", type=Path, default=Path("outputs/shards"), help="output of `ava preprocess`")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print and keep."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    names = [NONE, *(name for name in (flags.parts.split(",") if flags.parts else PARTS) if name != NONE)]
    for name in names:
        if name not in PARTS:
            command_line.error(f"--parts {name}: must be among {', '.join(PARTS)}")
    if flags.steps < 2:
        command_line.error(f"--steps = {flags.steps}: must be > 1")
    if not (flags.shards / "splits.json").is_file():
        command_line.error(
            f"--shards {flags.shards}: has no splits.json: run `ava preprocess` first (`make repro` does)"
        )
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ava-losses-") as folder:
        for name in names:
            output = train(name, flags, Path(folder))
            measured[name] = figures(output, _tokens_per_step(flags.preset))
            print(
                f"{name}: {measured[name]['validation_bits_per_byte']:.4f} bits per byte", file=sys.stderr, flush=True
            )
    print(show(measured))
    values: dict[str, Any] = {
        "parts": {name: {"settings": PARTS[name], **found} for name, found in measured.items()},
        "steps": flags.steps,
        "seed": flags.seed,
    }
    path = report.keep(hardware.slug(described), f"losses, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0


def _tokens_per_step(preset: str) -> int:
    from ava_core.config import resolve

    config = resolve(params=Path("params.yaml"), overrides=[f"preset={preset}"]).config.train
    return config.global_batch_size * config.sequence_length


if __name__ == "__main__":
    sys.exit(main())
