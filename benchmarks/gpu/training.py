"""Fifty steps of the preset by `ava train`, and the same training killed on the way and gone on with."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ava_core.config import resolve
from ava_core.runtime.digests import digest_file
from ava_core.training.checkpoints.folder import checkpoints_in
from benchmarks.continuation import command, ended, train
from benchmarks.gpu.plan import Outcome, Plan
from benchmarks.gpu.text import make_shards

STEPS = 50
CHECKPOINT_EVERY = 30
KILLED_AFTER = 3
"""Steps after the first checkpoint: so many are made again."""
MICRO_BATCHES = 4
"""In a step, instead of the preset's: gpu/base has 32 of them."""
LEARNT = 0.5
"""Nats per token that the loss must have fallen by, from the first step to the mean of the last five."""
FIRST_LOSS_BOUND, LAST_LOSS_BOUND, WEIGHTS_BOUND = 1e-3, 0.02, 0.05
"""On a GPU, whose sums have no fixed order, between the training that was killed and the other: relative difference of
the first step's loss after the checkpoint, difference of the last five losses' means in nats, |a - b| / |b| of all
weights. On a CPU all are 0: the model file has the same bytes."""


def run(plan: Plan) -> Outcome:
    """Losses, memory, speed and utilisation; faults: a loss or gradient that is no number, nothing learnt."""
    outcome = Outcome(figures={"text": make_shards(plan), "settings": settings(plan)})
    outcome.figures["steps"] = STEPS
    model = train("model", plan.shards, STEPS, settings(plan), plan.folder)
    rows = history(model)
    losses = [row["train_loss"] for row in rows]
    outcome.figures |= {"first_loss": losses[0], "last_loss": statistics.fmean(losses[-5:]), "losses": losses}
    outcome.figures["parameters"] = json.loads((model / "metrics.json").read_text())["parameters"]
    outcome.figures["timings"] = json.loads(model.with_name("model.timings.json").read_text())
    numbers = [row[name] for row in rows for name in ("train_loss", "gradient_norm")]
    if len(rows) != STEPS or not all(map(math.isfinite, numbers)):
        outcome.faults.append(f"{len(rows)} steps, of which not all have a finite loss and gradient")
    outcome.at_most("last_loss", outcome.figures["last_loss"], losses[0] - LEARNT)
    return outcome


def resume(plan: Plan) -> Outcome:
    """How a training that was killed and went on differs from the one of `run`, which `plan.model` must hold."""
    outcome = Outcome(figures={"killed_after_step": kill_on_the_way(plan)})
    again = train("resumed", plan.shards, STEPS, settings(plan), plan.folder, work=plan.folder / "resumed-work")
    whole, resumed = history(plan.model), history(again)
    files = [model / "model.safetensors" for model in (plan.model, again)]
    first, last = (_losses_apart(whole, resumed, rows) for rows in (slice(CHECKPOINT_EVERY, None), slice(-5, None)))
    outcome.figures["same_bytes"] = digest_file(files[0]) == digest_file(files[1])
    outcome.figures["first_loss_difference"] = first[0] / whole[CHECKPOINT_EVERY]["train_loss"]
    outcome.figures["last_loss_difference"] = statistics.fmean(last)
    outcome.figures["weights_difference"] = weights_apart(*files)
    exact = plan.device == "cpu"
    for name, bound in (
        ("first_loss_difference", FIRST_LOSS_BOUND),
        ("last_loss_difference", LAST_LOSS_BOUND),
        ("weights_difference", WEIGHTS_BOUND),
    ):
        outcome.at_most(name, outcome.figures[name], 0.0 if exact else bound)
    if exact and not outcome.figures["same_bytes"]:
        outcome.faults.append("model.safetensors: must have the same bytes as without the interruption")
    return outcome


def settings(plan: Plan) -> dict[str, Any]:
    """The preset's, with small global batches and a checkpoint on the way."""
    micro_batch = resolve(overrides=[f"preset={plan.preset}"]).config.train.micro_batch_size
    return {
        "preset": plan.preset,
        "threads": plan.threads,
        "train.precision": "bf16",
        "train.global_batch_size": MICRO_BATCHES * micro_batch,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "train.evaluate_every": STEPS,
    }


def kill_on_the_way(plan: Plan) -> int:
    """Begin the training, and end it by SIGKILL some steps after its first checkpoint; the last step that it made.

    Raises:
        RuntimeError: it ended before.
    """
    work = plan.folder / "resumed-work"
    words, environment = command("resumed", plan.shards, STEPS, settings(plan), plan.folder, work=work)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            done = _steps_done(work)
            if done >= CHECKPOINT_EVERY + KILLED_AFTER and _has_checkpoint(work):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(ended("resumed", process.returncode, process.communicate()[1]))
    finally:
        process.kill()
        process.communicate()
    return _steps_done(work)


def history(model: Path) -> list[dict[str, Any]]:
    """A row of figures per step."""
    return [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]


def weights_apart(found: Path, expected: Path) -> float:
    """|a - b| / |b| over all weights of two safetensors files."""
    a, b = load_file(found), load_file(expected)
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in b)
    return math.sqrt(apart / sum(float(value.double().square().sum()) for value in b.values()))


def _losses_apart(a: list[dict[str, Any]], b: list[dict[str, Any]], rows: slice) -> list[float]:
    pairs = zip(a[rows], b[rows], strict=True)
    return [abs(first["train_loss"] - second["train_loss"]) for first, second in pairs]


def _steps_done(work: Path) -> int:
    return max((len(path.read_bytes().splitlines()) for path in work.glob("train/*/state/history.jsonl")), default=0)


def _has_checkpoint(work: Path) -> bool:
    return any(checkpoints_in(folder) for folder in work.glob("train/*/state/checkpoints"))
