"""How far a model reads: loss by place in the text, past the length that it was trained with.

Usage: python -m benchmarks.context [--steps N] [--more-steps N] [--short N] [--long N] [--window N] [--set key=value]

A parent learns the embedded corpus (`make data`) in windows of SHORT tokens, and its held-out plays are scored in
windows of LONG (`evaluate.context`): as it is, and with its positions scaled in each way, without any further training.
Then a short training with `--init` in windows of LONG follows for each of them. One more model learns as the parent
did, with a sliding window of WINDOW tokens. Prints nats per token by how many tokens of its play the model had read,
and keeps them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.config import presets, resolve
from ava_core.config.context import DYNAMIC, LINEAR, YARN
from ava_core.config.evaluate import EvaluateConfig
from ava_core.data.corpora import SHAKESPEARE
from ava_core.data.shards import ShardedSplit
from ava_core.evaluation.long_context import LongContext, LongScore, bucket_start
from ava_core.generation.loading import load_model
from ava_core.progress import Progress
from benchmarks import hardware, report
from benchmarks.continuation import lowered_rates, train
from benchmarks.corpora import shards_of_files

PLAIN, KINDS = "plain", (LINEAR, DYNAMIC, YARN)


def lengths(tokens_per_step: int, length: int) -> dict[str, Any]:
    """Settings for windows of a length, with as many tokens in a step."""
    rows = max(1, tokens_per_step // length)
    return {"train.sequence_length": length, "train.global_batch_size": rows, "train.micro_batch_size": rows}


def scaling(kind: str, short: int) -> dict[str, Any]:
    """Settings of `model.rope_scaling`."""
    if kind == PLAIN:
        return {}
    return {"model.rope_scaling.type": kind, "model.rope_scaling.original_max_position_embeddings": short}


def measure(folder: Path, shards: Path, short: int, long: int, state: Path, kind: str = "") -> LongScore:
    """Score a model in long windows; with a `kind`, its positions scaled in that way."""
    model, tokenizer = load_model(folder)
    if kind:
        rope = {"rope_type": kind, "factor": long / short, "original_max_position_embeddings": short}
        model.config.rope_parameters = {**rope, "rope_theta": model.config.rope_parameters["rope_theta"]}
    split = ShardedSplit.open(shards, "test")
    windows = LongContext.open(EvaluateConfig(context=long), folder, split, tokenizer, short)
    assert windows is not None
    return windows.measure(f"{folder.name}-{kind}", model, state, Progress(quiet=True))


def show(found: Mapping[str, LongScore], long: int) -> str:
    """The table that is printed."""
    first = next(iter(found.values()))
    rows = []
    for index, tokens in enumerate(first.tokens):
        end = min(bucket_start(index + 1), long) - 1
        losses = [score.losses[index] for score in found.values()]
        cells = ["" if loss is None else f"{loss:.3f}" for loss in losses]
        rows.append([f"{bucket_start(index)} to {end}", f"{tokens:,}", *cells])
    return report.table(("tokens read", "tokens", *found), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__.split("\n")[0])
    flags.add_argument("--steps", type=int, default=600, help="of the parent (default: %(default)s)")
    flags.add_argument("--more-steps", type=int, default=60, help="in long windows (default: %(default)s)")
    flags.add_argument("--short", type=int, default=128, help="tokens of the parent's windows (default: %(default)s)")
    flags.add_argument("--long", type=int, default=1024, help="tokens of the long ones (default: %(default)s)")
    flags.add_argument("--window", type=int, default=64, help="tokens of the sliding window (default: %(default)s)")
    flags.add_argument("--rate", type=float, default=0.25, help="share of the rates to go on with")
    flags.add_argument("--preset", choices=presets.names(), default="cpu/tiny")
    flags.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flags.add_argument("--data", type=Path, default=Path("data/raw"), help="where `make data` puts the corpus")
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and score all of them, print and keep."""
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if min(flags.steps, flags.more_steps) < 2 or not 1 < flags.window < flags.short < flags.long:
        command_line.error("--steps and --more-steps must be > 1, and 1 < --window < --short < --long")
    plays = SHAKESPEARE.verify(flags.data / SHAKESPEARE.name)
    settings: dict[str, Any] = {
        "preset": flags.preset,
        "model.max_position_embeddings": flags.long,
        **dict(item.split("=", 1) for item in flags.overrides),
    }
    config = resolve(overrides=[f"{key}={value}" for key, value in settings.items()]).config
    tokens = config.train.global_batch_size * config.train.sequence_length
    short, long = lengths(tokens, flags.short), lengths(tokens, flags.long)
    lower = lowered_rates(config, flags.rate)
    described = hardware.describe("cpu", len(os.sched_getaffinity(0)))
    print(hardware.line(described))
    found: dict[str, LongScore] = {}
    with tempfile.TemporaryDirectory(prefix="ava-context-") as name:
        folder = Path(name)
        shards = shards_of_files(plays, config.tokenizer.vocab_size, folder / "shards")

        def score(column: str, model: Path, kind: str = "") -> None:
            found[column] = measure(model, shards, flags.short, flags.long, folder, kind)
            print(f"{column}: {[round(loss, 3) for loss in found[column].losses if loss]}", file=sys.stderr, flush=True)

        parent = train("parent", shards, flags.steps, settings | short, folder)
        score(PLAIN, parent)
        for kind in KINDS:
            score(kind, parent, kind)
        for kind in (PLAIN, *KINDS):
            changes = settings | long | lower | scaling(kind, flags.short)
            score(f"{kind}+", train(f"{kind}-long", shards, flags.more_steps, changes, folder, init=parent))
        sliding = settings | short | {"model.sliding_window": flags.window}
        score("window", train("window", shards, flags.steps, sliding, folder))
    print(show(found, flags.long))
    print(f"trained in windows of {flags.short}; + is after {flags.more_steps} more steps in windows of {flags.long}")
    values = {
        "settings": settings,
        **{key: getattr(flags, key) for key in ("steps", "more_steps", "short", "long", "window", "rate")},
        "tokens": next(iter(found.values())).tokens,
        "losses": {column: score.losses for column, score in found.items()},
    }
    path = report.keep(hardware.slug(described), f"context, {flags.preset}", described, values, flags.results)
    print(report.kept_in(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
