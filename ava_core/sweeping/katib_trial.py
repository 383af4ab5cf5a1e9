"""A trial of Katib's: `ava train`, whose figures on the validation split go to standard output as Katib reads them.

    python -m ava_core.sweeping.katib_trial --params-yaml TEXT --set KEY=VALUE --shards DIR --work DIR --output DIR

A line is `TIME step=50 validation_loss=3.1 validation_bits_per_byte=2.0`; Katib's collector wants the time in front.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ava_core.config import resolve
from ava_core.launching.processes import end
from ava_core.runtime.work import timings_path
from ava_core.sweeping.training_entry import training_entry
from ava_core.sweeping.trial import AVA
from ava_core.sweeping.watch import HISTORY, WATCHED
from ava_core.tracking.feed import Feed

POLL_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None, program: Sequence[str] = AVA) -> int:
    """Train, and print each measurement as soon as it is there, then all figures; the step's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_args(words)
    config = resolve(params_text=given.params_yaml, overrides=given.set).config
    entry = training_entry(config, given.shards.absolute(), given.output, given.work.absolute())
    feed = Feed(entry.state / HISTORY, "step")
    process = subprocess.Popen([*program, "train", *words], stdin=subprocess.DEVNULL, process_group=0)
    try:
        while process.poll() is None:
            _print_measurements(feed)
            time.sleep(POLL_SECONDS)
    finally:
        end([process])
    if process.returncode == 0:
        _print_measurements(Feed(given.output / HISTORY, "step", feed.last))
        metrics = json.loads((given.output / "metrics.json").read_text())
        _print({**json.loads(timings_path(given.output).read_text()), **metrics})
    return process.returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ava_core.sweeping.katib_trial")
    parser.add_argument("--params-yaml", required=True)
    parser.add_argument("--set", action="append", default=[])
    for name in ("--shards", "--work", "--output"):
        parser.add_argument(name, type=Path, required=True)
    return parser


def _print_measurements(feed: Feed) -> None:
    for row in feed.read():
        if all(name in row for name in WATCHED):
            _print({"step": row["step"], **{name: row[name] for name in WATCHED}})


def _print(figures: Mapping[str, float]) -> None:
    pairs = " ".join(f"{name}={value:.8g}" for name, value in figures.items())
    print(f"{datetime.now(UTC).isoformat().replace('+00:00', 'Z')} {pairs}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
