"""A dense model upcycled into a mixture against going on with it, for an equal time.

Usage: python -m benchmarks.upcycling [--seconds N] [--parent-steps N] [--experts E] [--experts-per-token K]
       [--granularity G] [--noise S] [--rate SHARE] [--set key=value]

A dense model (one expert of --width per layer) learns the plays (`make data`). `ava import` makes a mixture of it
(arXiv 2212.05055). Then both go on from there with the same data, rates and seed, at the same time, on one core each:
whatever slows the machine down slows both. How many steps fit into --seconds is measured for each before, in two short
trainings at the same time too, so that each has a schedule of its own that ends with its time. Prints both validation
losses (nats per token) over time, and keeps them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ava_core.config import presets, resolve
from ava_core.data.corpora import SHAKESPEARE
from benchmarks import hardware, report
from benchmarks.continuation import losses, lowered_rates, train
from benchmarks.corpora import shards_of_files

DENSE = {
    "model.num_ffn_experts": 1,
    "model.num_zero_experts": 0,
    "model.num_copy_experts": 0,
    "model.num_constant_experts": 0,
    "model.num_experts_per_token": 1,
    "model.max_experts_per_token": 1,
    "model.router": "top_k",
    "model.gating_residuals": "false",
    "model.balance_loss_weight": 0,
    "model.router_z_loss_weight": 0,
}
EVALUATIONS = 10
"""Of each training, the last at its end."""
PROBES = 4


def upcycle(dense: Path, output: Path, flags: argparse.Namespace) -> Path:
    """`ava import` of the dense model as a mixture."""
    command = [sys.executable, "-m", "ava_core.cli.main", "import", str(dense), "--output", str(output), "--quiet"]
    for name in ("experts", "experts_per_token", "granularity", "noise"):
        command += [f"--{name.replace('_', '-')}", str(getattr(flags, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ava import ended with {done.returncode}\n{done.stderr[-2000:]}")
    return output


def train_both(
    parents: Mapping[str, Path], steps: Mapping[str, int], shards: Path, settings: dict[str, Any], folder: Path
) -> dict[str, Path]:
    """Go on from both parents at once. Returns the models' folders by name."""

    def go_on(name: str) -> Path:
        every = max(1, steps[name] // EVALUATIONS)
        own = settings | {"threads": 1, "train.evaluate_every": every, "train.checkpoint_every": steps[name]}
        return train(f"{name}-{steps[name]}", shards, steps[name], own, folder, init=parents[name])

    with ThreadPoolExecutor(len(parents)) as pool:
        return dict(zip(parents, pool.map(go_on, parents), strict=True))


def steps_that_fit(budget: float, count: int, short: float, long: float) -> int:
    """Steps of a training of `budget` seconds, from what one of `count` steps took, and one of PROBES times as many.

    Both spent as much on all that isn't steps, the evaluations among it, as the long one will.
    """
    each = (long - short) / (count * (PROBES - 1))
    return max(2, round((budget - (short - count * each)) / each)) if each > 0 else 2


def seconds(model: Path) -> float:
    """What the training took, its evaluations included and the process's start not."""
    found = json.loads(model.with_name(f"{model.name}.timings.json").read_text())
    return float(found["wall_seconds"])


def show(curves: Mapping[str, Mapping[int, float]], steps: Mapping[str, int]) -> str:
    """Losses by share of the time, the last evaluations in the last row."""
    points = {
        name: [(step / steps[name], loss) for step, loss in sorted(curve.items())] for name, curve in curves.items()
    }
    first, second = points.values()
    rows = [
        [f"{100 * share:.0f}%", f"{dense:.3f}", f"{mixture:.3f}", f"{mixture - dense:+.3f}"]
        for (share, dense), (_, mixture) in zip(first, second, strict=False)
    ]
    return report.table(("time", "dense goes on", "upcycled", "difference"), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.upcycling", description=__doc__.split("\n")[0])
    flags.add_argument("--seconds", type=int, default=600, help="of each training (default: %(default)s)")
    flags.add_argument("--parent-steps", type=int, default=500, help="of the dense model (default: %(default)s)")
    flags.add_argument("--width", type=int, default=512, help="of its feed-forward networks (default: %(default)s)")
    flags.add_argument("--experts", type=int, default=8)
    flags.add_argument("--experts-per-token", type=int, default=2)
    flags.add_argument("--granularity", type=int, default=2)
    flags.add_argument("--noise", type=float, default=0.0)
    flags.add_argument(
        "--rate", type=float, default=0.5, help="share of the rates to go on with (default: %(default)s)"
    )
    flags.add_argument("--probe-steps", type=int, default=20, help="to measure the speed (default: %(default)s)")
    flags.add_argument("--preset", choices=presets.names(), default="cpu/tiny")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print and keep; 1 if the mixture ended above the dense model."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if min(flags.seconds, flags.parent_steps - 1, flags.probe_steps - 1) < 1 or not 0 < flags.rate <= 1:
        command_line.error("--seconds must be > 0, --parent-steps and --probe-steps > 1, --rate in (0, 1]")
    plays = SHAKESPEARE.verify(flags.data / SHAKESPEARE.name)
    given = {"preset": flags.preset, **dict(item.split("=", 1) for item in flags.overrides)}
    config = resolve(overrides=[f"{key}={value}" for key, value in given.items()]).config
    lower = lowered_rates(config, flags.rate)
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    with tempfile.TemporaryDirectory(prefix="ava-upcycling-") as name:
        folder = Path(name)
        shards = shards_of_files(plays, config.tokenizer.vocab_size, folder / "shards")
        dense = train(
            "dense", shards, flags.parent_steps, given | DENSE | {"model.expert_intermediate_size": flags.width}, folder
        )
        parents = {"dense": dense, "upcycled": upcycle(dense, folder / "upcycled", flags)}
        probed = [
            train_both(parents, dict.fromkeys(parents, count), shards, given | lower, folder)
            for count in (flags.probe_steps, PROBES * flags.probe_steps)
        ]
        steps = {
            key: steps_that_fit(flags.seconds, flags.probe_steps, seconds(probed[0][key]), seconds(probed[1][key]))
            for key in parents
        }
        trained = train_both(parents, steps, shards, given | lower, folder)
        curves = {key: losses(model) for key, model in trained.items()}
        took = {key: seconds(model) for key, model in trained.items()}
    print(show(curves, steps))
    last = {key: curve[max(curve)] for key, curve in curves.items()}
    for key in parents:
        print(f"{key}: {steps[key]} steps in {took[key]:.0f} s, validation loss {last[key]:.3f}")
    values = {
        "settings": given,
        "flags": {key: getattr(flags, key) for key in ("seconds", "parent_steps", "width", "rate")}
        | {key: getattr(flags, key) for key in ("experts", "experts_per_token", "granularity", "noise")},
        "steps": steps,
        "wall_seconds": took,
        "validation_loss": {key: {str(step): loss for step, loss in curve.items()} for key, curve in curves.items()},
    }
    path = report.keep(hardware.slug(described), f"upcycling, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0 if last["upcycled"] < last["dense"] else 1


if __name__ == "__main__":
    sys.exit(main())
