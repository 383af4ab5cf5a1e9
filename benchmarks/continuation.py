"""Going on from a model against beginning from nothing, on a text that the model has never seen.

Usage: python -m benchmarks.continuation [--steps N] [--parent-steps N] [--rate SHARE] [--set key=value]

A parent learns the comedies of the embedded corpus (`make data`), with a tokenizer trained on them. Then two trainings
of the same steps, batches and seed learn the tragedies with that tokenizer: one from fresh weights, at the preset's
rates, one with `--init`, at SHARE of them. Prints the validation loss (nats per token of the tragedies' own validation
part) at every evaluation, and keeps it in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ava_core.config import AvaConfig, presets, resolve
from ava_core.data.corpora import SHAKESPEARE
from benchmarks import hardware, report
from benchmarks.corpora import shards_of_files

FIRST, SECOND = "comedies", "tragedies"
RATES = ("learning_rate", "adam_learning_rate")


def command(
    name: str,
    shards: Path,
    steps: int,
    settings: dict[str, Any],
    folder: Path,
    *,
    init: Path | None = None,
    work: Path | None = None,
) -> tuple[list[str], dict[str, str]]:
    """`ava train` of FOLDER/NAME as words of a command, and its environment: nobody watches it.

    Args:
        name: of the model's folder.
        shards: to train on.
        steps: optimiser steps.
        settings: further ones, as `--set` takes them.
        folder: for the model, and for the work folder if no other is given as `work`.
        init: a model to begin from.
        work: the work folder.
    """
    fields = {**settings, "train.steps": steps, "train.warmup_steps": min(20, steps - 1)}
    words = [sys.executable, "-m", "ava_core.cli.main", "train", "--params-yaml", "{}", "--quiet"]
    words += [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
    words += ["--shards", str(shards), "--output", str(folder / name), "--work", str(work or folder / "work")]
    words += ["--init", str(init)] if init else []
    return words, {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}


def train(
    name: str,
    shards: Path,
    steps: int,
    settings: dict[str, Any],
    folder: Path,
    init: Path | None = None,
    work: Path | None = None,
) -> Path:
    """Run `command` to its end. Returns the model's folder."""
    words, environment = command(name, shards, steps, settings, folder, init=init, work=work)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(ended(name, done.returncode, done.stderr))
    return folder / name


def ended(name: str, code: int, errors: str) -> str:
    """How a training ended that should have gone on."""
    return f"{name}: ava train ended with {code}\n{errors[-2000:]}"


def lowered_rates(config: AvaConfig, share: float) -> dict[str, float]:
    """Settings that go on with `share` of the configuration's learning rates."""
    return {f"train.{name}": share * getattr(config.train, name) for name in RATES}


def losses(model: Path) -> dict[int, float]:
    """Validation loss by step, of each evaluation."""
    rows = map(json.loads, (model / "history.jsonl").read_text().splitlines())
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


def show(fresh: dict[int, float], continued: dict[int, float]) -> str:
    """The table that is printed."""
    rows = [
        [str(step), f"{fresh[step]:.3f}", f"{continued[step]:.3f}", f"{continued[step] - fresh[step]:+.3f}"]
        for step in sorted(fresh)
    ]
    return report.table(("steps", "from scratch", "continued", "difference"), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.continuation", description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=500, help="optimiser steps on the new text (default: %(default)s)")
    flags.add_argument(
        "--parent-steps", type=int, default=500, help="of the parent on the first (default: %(default)s)"
    )
    flags.add_argument(
        "--rate", type=float, default=0.5, help="share of the rates to go on with (default: %(default)s)"
    )
    flags.add_argument("--preset", choices=presets.names(), default="cpu/tiny")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train three times, print and keep; 1 if the continued training was above the other at an evaluation."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if min(flags.steps, flags.parent_steps) < 2 or not 0 < flags.rate <= 1:
        command_line.error("--steps and --parent-steps must be > 1, --rate in (0, 1]")
    plays = SHAKESPEARE.verify(flags.data / SHAKESPEARE.name)
    parts = {kind: [path for path in plays if path.parent.name == kind] for kind in (FIRST, SECOND)}
    settings: dict[str, Any] = {"preset": flags.preset, **dict(item.split("=", 1) for item in flags.overrides)}
    config = resolve(overrides=[f"{key}={value}" for key, value in settings.items()]).config
    lower = lowered_rates(config, flags.rate)
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    with tempfile.TemporaryDirectory(prefix="ava-continuation-") as name:
        folder = Path(name)
        known = shards_of_files(parts[FIRST], config.tokenizer.vocab_size, folder / FIRST)
        new = shards_of_files(
            parts[SECOND], config.tokenizer.vocab_size, folder / SECOND, tokenizer=known / "tokenizer"
        )
        parent = train("parent", known, flags.parent_steps, settings, folder)
        fresh = losses(train("fresh", new, flags.steps, settings, folder))
        continued = losses(train("continued", new, flags.steps, settings | lower, folder, init=parent))
    print(show(fresh, continued))
    everywhere = all(continued[step] < fresh[step] for step in fresh)
    print(f"lower at every evaluation: {'yes' if everywhere else 'no'}")
    values = {
        "settings": settings,
        "parent_steps": flags.parent_steps,
        "rate": flags.rate,
        "from_scratch": {str(step): loss for step, loss in fresh.items()},
        "continued": {str(step): loss for step, loss in continued.items()},
    }
    path = report.keep(hardware.slug(described), f"continuation, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0 if everywhere else 1


if __name__ == "__main__":
    sys.exit(main())
