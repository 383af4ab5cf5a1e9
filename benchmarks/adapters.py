"""An adapter of one percent of the weights against all of them, on a text that the model has never seen.

Usage: python -m benchmarks.adapters [--steps N] [--parent-steps N] [--share S] [--rate R ...] [--set key=value]

A parent learns the comedies of the embedded corpus (`make data`), with a tokenizer trained on them. Then trainings of
the same steps, batches and seed go on from it with the tragedies: one of all weights, as the preset has it, at each
share of its rates, and one of a LoRA adapter at each rate, of the largest rank that keeps its parameters below
`--share`. Each runs in a process of its own; the best of each kind are compared. Prints the gain of each (how far the
loss on the tragedies' own validation part, in nats per token, fell below the parent's), the peak memory of its process
and its time, and keeps them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ava_core.config import AvaConfig, presets, resolve
from ava_core.config.adapter import AdapterConfig, divide_adapted
from ava_core.config.parameters import count, parameters_of
from ava_core.data.corpora import SHAKESPEARE
from benchmarks import hardware, report
from benchmarks.continuation import FIRST, SECOND, lowered_rates, train
from benchmarks.corpora import shards_of_files

TARGETS = ("attention", "experts", "shared")


def rank_of_share(config: AvaConfig, vocab_size: int, share: float) -> tuple[int, float]:
    """The largest rank of an adapter that has at most `share` of the model's parameters, and what share that is.

    Raises:
        SystemExit: rank 1 has more.
    """
    parameters = parameters_of(config.model, vocab_size)

    def at(rank: int) -> float:
        trained, *_ = divide_adapted(parameters, AdapterConfig(kind="lora", rank=rank, targets=list(TARGETS)))
        return count(trained) / count(parameters)

    rank = int(share / at(1))
    if not rank:
        raise SystemExit(f"--share {share}: an adapter of rank 1 has {at(1):.4f} of the parameters")
    return rank, at(rank)


def loss_of(model: Path, shards: Path, config: AvaConfig) -> float:
    """Validation loss of a model as it is, nats per token, over the whole split."""
    from ava_core.data.shards import ShardedSplit
    from ava_core.models import EnhancedMoEForCausalLM
    from ava_core.models.pretrained import load_pretrained
    from ava_core.training.validation import SplitValidation

    loaded, _ = load_pretrained(EnhancedMoEForCausalLM, model)
    validation = SplitValidation(ShardedSplit.open(shards, "validation"), config.train)
    return validation.measure(loaded, whole=True)["validation_loss"]


def figures(model: Path, before: float) -> dict[str, float]:
    """What is compared of a finished training."""
    metrics = json.loads((model / "metrics.json").read_text())
    timings = json.loads(model.with_name(f"{model.name}.timings.json").read_text())
    return {
        "validation_loss": metrics["validation_loss"],
        "gain": before - metrics["validation_loss"],
        "peak_memory_bytes": timings["peak_memory_bytes"],
        "estimated_memory_bytes": timings["estimated_memory_bytes"],
        "training_seconds": timings["training_seconds"],
    }


def show(before: float, whole: dict[float, dict[str, float]], adapter: dict[float, dict[str, float]]) -> str:
    """The table that is printed, of figures by rate."""
    rows = [["parent", "", f"{before:.3f}", "", "", ""]]
    for name, at in (("all weights", whole), ("adapter", adapter)):
        for rate, found in at.items():
            gib = f"{found['peak_memory_bytes'] / 2**30:.2f}"
            gained = [f"{found['validation_loss']:.3f}", f"{found['gain']:.3f}"]
            rows.append([name, f"{rate:g}", *gained, gib, f"{found['training_seconds']:.0f}"])
    best = [max(at.values(), key=lambda found: found["gain"]) for at in (adapter, whole)]
    shares = [best[0][name] / best[1][name] for name in ("gain", "peak_memory_bytes", "training_seconds")]
    rows.append(["share", "", "", *(f"{share:.2f}" for share in shares)])
    return report.table(("", "rate", "loss", "gain", "GiB", "s"), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=300, help="optimiser steps on the new text (default: %(default)s)")
    flags.add_argument(
        "--parent-steps", type=int, default=1000, help="of the parent on the first (default: %(default)s)"
    )
    flags.add_argument("--share", type=float, default=0.01, help="of the parameters, at most (default: %(default)s)")
    flags.add_argument("--rate", type=float, nargs="+", default=[0.005], help="of the adapter (default: 0.005)")
    flags.add_argument(
        "--whole-rate",
        type=float,
        nargs="+",
        default=[0.25],
        help="share of the preset's rates for all weights (default: 0.25)",
    )
    flags.add_argument("--preset", choices=presets.names(), default="cpu/small")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train three times, print and keep."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if (
        min(flags.steps, flags.parent_steps) < 2
        or not 0 < flags.share < 1
        or not all(0 < share <= 1 for share in flags.whole_rate)
    ):
        command_line.error("--steps and --parent-steps must be > 1, --share in (0, 1), --whole-rate in (0, 1]")
    plays = SHAKESPEARE.verify(flags.data / SHAKESPEARE.name)
    parts = {kind: [path for path in plays if path.parent.name == kind] for kind in (FIRST, SECOND)}
    settings: dict[str, Any] = {"preset": flags.preset, **dict(item.split("=", 1) for item in flags.overrides)}
    config = resolve(overrides=[f"{key}={value}" for key, value in settings.items()]).config
    vocab_size = config.tokenizer.vocab_size
    rank, share = rank_of_share(config, vocab_size, flags.share)
    adapter = {
        "train.optimizer": "adamw",
        "train.weight_decay": 0.0,
        "train.adapter.kind": "lora",
        "train.adapter.rank": rank,
        "train.adapter.alpha": 2.0 * rank,
    }
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    print(f"rank {rank}: {share:.2%} of {count(parameters_of(config.model, vocab_size)):,} parameters", flush=True)
    with tempfile.TemporaryDirectory(prefix="ava-adapters-") as name:
        folder = Path(name)
        known = shards_of_files(parts[FIRST], vocab_size, folder / FIRST)
        new = shards_of_files(parts[SECOND], vocab_size, folder / SECOND, tokenizer=known / "tokenizer")
        parent = train("parent", known, flags.parent_steps, settings, folder)
        before = loss_of(parent, new, config)
        print(f"parent: {before:.3f} on the new text", flush=True)

        def gain(name: str, changes: dict[str, Any]) -> dict[str, float]:
            return figures(train(name, new, flags.steps, settings | changes, folder, init=parent), before)

        updated = {rate: gain(f"adapter-{rate:g}", adapter | {"train.learning_rate": rate}) for rate in flags.rate}
        whole = {share: gain(f"whole-{share:g}", lowered_rates(config, share)) for share in flags.whole_rate}
    print(show(before, whole, updated))
    values = {
        "settings": settings,
        "parent_steps": flags.parent_steps,
        "steps": flags.steps,
        "rank": rank,
        "share": share,
        "parent_loss": before,
        "whole": whole,
        "adapter": updated,
    }
    path = report.keep(hardware.slug(described), f"adapters, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
