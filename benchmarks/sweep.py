"""What ASHA saves in a sweep, and whether it costs the best trial: 16 settings as a whole grid, and pruned.

Usage: python -m benchmarks.sweep [--steps N] [--seeds N] [--shards FOLDER] [--threads N]

Runs `ava sweep`'s own machinery twice over the same grid, 8 learning rates x 2 weight decays: every trial to its end,
then with ASHA. Each has a work folder of its own, so nothing of the first is taken again by the second. Then the grid's
best setting is trained with other seeds: a difference between the two bests that is smaller than what a seed does is
none. Prints seconds (the starts of processes are part of them), training steps, the bests and the noise, and keeps them
in benchmarks/results/. Target: the same best within noise, in at most half of the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.yaml_text import to_yaml
from benchmarks import hardware, report

FIGURE = "validation_bits_per_byte"
RATES = [0.0003, 0.001, 0.003, 0.006, 0.01, 0.02, 0.05, 0.15]
DECAYS = [0.0, 0.3]
SPACE = {"train.learning_rate": {"values": RATES}, "train.weight_decay": {"values": DECAYS}}
REDUCTION = 3
"""Of ASHA: a third of the trials passes each of its rungs, at a ninth and a third of the steps."""
MODEL = {
    "hidden_size": 96,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_ffn_experts": 8,
    "expert_intermediate_size": 96,
    "num_zero_experts": 1,
    "num_copy_experts": 1,
    "num_constant_experts": 1,
}
HEADER = ("sweep", "trials", "pruned", "steps", "seconds", "best", "bits/byte")


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep that has run.

    Attributes:
        name: grid, asha or seeds.
        trials, pruned: how many.
        steps: optimiser steps of all trials together.
        seconds: from the start of the sweep to its end.
        best: the settings of its best trial.
        figures: of its finished trials, by their number.
    """

    name: str
    trials: int
    pruned: int
    steps: int
    seconds: float
    best: Mapping[str, Any]
    figures: Mapping[int, float]

    @property
    def figure(self) -> float:
        """The best one."""
        return min(self.figures.values())


def parameters(steps: int, threads: int) -> dict[str, Any]:
    """What all trials have in common; the validation loss is measured where ASHA decides."""
    train = {
        "steps": steps,
        "warmup_steps": max(1, steps // 20),
        "sequence_length": 128,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "optimizer": "adamw",
        "evaluate_every": first_rung(steps),
        "checkpoint_every": steps,
    }
    return {"threads": threads, "model": MODEL, "train": train}


def first_rung(steps: int) -> int:
    """Steps after which ASHA first decides."""
    return max(1, steps // REDUCTION**2)


def run(
    name: str, space: Mapping[str, Any], fixed: Mapping[str, Any], flags: argparse.Namespace, folder: Path, **more: Any
) -> Swept:
    """Run one sweep by `ava sweep`'s machinery.

    Args:
        name: of the sweep.
        space: its parameters.
        fixed: settings of all its trials, by dotted key.
        flags: the command line.
        folder: for everything that it writes.
        more: further keys of the sweep's file.
    """
    from ava_core.sweeping.checks import Base, check
    from ava_core.sweeping.space import read_space
    from ava_core.sweeping.sweep import SweepRequest, run_sweep

    own = folder / name
    own.mkdir()
    params, file = own / "params.yaml", own / "sweep.yaml"
    params.write_text(to_yaml(parameters(flags.steps, flags.threads)))
    file.write_text(to_yaml({"method": "grid", "metric": {"name": FIGURE}, "parameters": space, **more}))
    overrides = tuple(f"{key}={value}" for key, value in fixed.items())
    base = Base(params=params, configs=(), overrides=overrides, space=file)
    request = SweepRequest(
        name=name,
        base=base,
        checked=check(read_space(file), base),
        storage=f"sqlite:///{own / 'sweep.db'}",
        folder=own / "out",
        work=own / "work",
        shards=flags.shards.absolute(),
        max_failures=0,
    )
    started = time.perf_counter()
    results = run_sweep(request)
    seconds = time.perf_counter() - started
    assert results.best is not None  # no failure is allowed
    return Swept(
        name=name,
        trials=len(results.rows),
        pruned=results.counts().get("pruned", 0),
        steps=sum(row.steps or 0 for row in results.rows),
        seconds=seconds,
        best=results.best.settings,
        figures={row.number: row.values[FIGURE] for row in results.rows if row.state == "complete"},
    )


def judge(grid: Swept, asha: Swept, seeds: Swept) -> dict[str, Any]:
    """The comparison: shares of time and steps, the difference of the bests, what a seed does, and the verdict.

    The noise is the standard deviation over seeds; a difference of two trainings has the root of two times that.
    """
    noise = statistics.stdev(seeds.figures.values())
    difference = asha.figure - grid.figure
    share = asha.seconds / grid.seconds
    same = difference <= 2 * 2**0.5 * noise
    return {
        "time_share": share,
        "step_share": asha.steps / grid.steps,
        "difference": difference,
        "noise": noise,
        "same_best": asha.best == grid.best,
        "reached": same and share <= 0.5,
    }


def show(sweeps: Sequence[Swept], verdict: Mapping[str, Any]) -> str:
    """The table and the sentence that are printed."""
    rows = []
    for each in sweeps:
        best = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in each.best.items())
        counts = [str(each.trials), str(each.pruned), f"{each.steps:,}", f"{each.seconds:.0f}"]
        rows.append([each.name, *counts, best, f"{each.figure:.4f}"])
    whose = "the same" if verdict["same_best"] else "another"
    told = (
        f"asha: {verdict['time_share']:.2f} of the grid's time, {verdict['step_share']:.2f} of its steps; its best is"
        f" {verdict['difference']:+.4f} bits per byte ({whose} setting), where a seed makes {verdict['noise']:.4f}"
        " (standard deviation): target"
        f" {'reached' if verdict['reached'] else 'missed'}"
    )
    return f"{report.table(HEADER, rows)}\n{told}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=450, help="optimiser steps of a whole trial (default: %(default)s)")
    flags.add_argument("--seeds", type=int, default=4, help="seeds of the best setting (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=0, help="CPU threads of a training; 0: all (default)")
    flags.add_argument("--shards", type=Path, default=Path("outputs/shards"), help="output of `ava preprocess`")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep twice, train the seeds, print and keep."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if flags.steps < REDUCTION**2:
        command_line.error(f"--steps = {flags.steps}: must be >= {REDUCTION**2}")
    if flags.seeds < 2:
        command_line.error(f"--seeds = {flags.seeds}: must be >= 2, or there is no noise to be known")
    if not (flags.shards / "splits.json").is_file():
        command_line.error(f"--shards {flags.shards}: has no splits.json: run `ava preprocess` first")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # nobody watches
    described = hardware.describe("cpu", flags.threads or len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    asha = {"pruner": {"asha": {"min_steps": first_rung(flags.steps), "reduction_factor": REDUCTION}}}
    with tempfile.TemporaryDirectory(prefix="ava-sweep-") as made:
        folder = Path(made)
        grid = run("grid", SPACE, {}, flags, folder)
        pruned = run("asha", SPACE, {}, flags, folder, **asha)
        seeds = run("seeds", {"seed": {"values": list(range(1, flags.seeds + 1))}}, grid.best, flags, folder)
    verdict = judge(grid, pruned, seeds)
    print(show([grid, pruned, seeds], verdict))
    values = {"steps": flags.steps, "seeds": flags.seeds, **verdict, "bests": [grid.figure, pruned.figure]}
    path = report.keep(hardware.slug(described), "sweep", described, values, flags.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
