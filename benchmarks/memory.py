"""The memory that trainings really take against what `ava config show` and their own logs say.

Usage: python -m benchmarks.memory [CASE ...]

Each case is two steps of `ava train` in a fresh process, with the sizes of a preset: the most memory that a process of
it has had (VmHWM), and of several the sum of their shares (PSS). The text is made up: so many different words that
every preset gets the whole vocabulary that it asks for, and so few that training is all there is to wait for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import psutil

from ava_core.config import resolve
from ava_core.config.estimate import estimate
from ava_core.config.hardware import GIB
from ava_core.config.schema import AvaConfig
from ava_core.data.shards import load_splits_info

SHORT = ["steps=2", "warmup_steps=1", "evaluate_sequences=1", "checkpoint_every=1"]
"""As a long run does, it trains a step while the checkpoint of the one before is written."""


@dataclass(frozen=True)
class Case:
    """A training to measure: a preset, changes of its settings, and the environment that decides what computes."""

    preset: str
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def short(preset: str, *train: str) -> Case:
    """A preset with changes of its section `train`."""
    return Case(preset, tuple(f"train.{change}" for change in train))


def long(length: int, sequences: int, *train: str, **environment: str) -> Case:
    """`cpu/tiny` in windows of `length` tokens, `sequences` per pass."""
    batch = (f"sequence_length={length}", f"micro_batch_size={sequences}", f"global_batch_size={sequences}")
    settings = (f"model.max_position_embeddings={length}", *short("", *batch, *train).settings)
    return Case("cpu/tiny", settings, environment)


AVX2 = {"AVA_KERNELS": "off", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""As on a CPU without AVX-512, where products in bfloat16 take too long."""
SHAPES = ((1024, 8), (4096, 2), (8192, 1), (4096, 8))
CASES = {
    "cpu/tiny": short("cpu/tiny"),
    "cpu/tiny, 64 sequences": short("cpu/tiny", "micro_batch_size=64", "global_batch_size=64"),
    "cpu/tiny, fp32": short("cpu/tiny", "precision=fp32"),
    "cpu/tiny, 2 processes": short("cpu/tiny", "processes=2", "micro_batch_size=8"),
    "cpu/tiny, 2 processes, ZeRO 1": short(
        "cpu/tiny", "processes=2", "micro_batch_size=8", "zero_stage=1", "expert_update_interval=1"
    ),
    "cpu/tiny, 2 processes, ZeRO 3": short(
        "cpu/tiny", "processes=2", "micro_batch_size=8", "zero_stage=3", "expert_update_interval=1"
    ),
    **{f"{length} x {n}": long(length, n) for length, n in SHAPES},
    **{f"{length} x {n}, onednn": long(length, n, AVA_KERNELS="onednn") for length, n in SHAPES},
    **{f"{length} x {n}, off": long(length, n, AVA_KERNELS="off") for length, n in SHAPES},
    **{f"{length} x {n}, fp32": long(length, n, "precision=fp32") for length, n in SHAPES},
    **{f"{length} x {n}, AVX2, fp32": long(length, n, "precision=fp32", **AVX2) for length, n in SHAPES},
    "4096 x 2, sliding window": Case("cpu/tiny", (*long(4096, 2).settings, "model.sliding_window=256")),
    "cpu/small": short("cpu/small", "global_batch_size=16"),
    "cpu/small, 4 sequences": short("cpu/small", "global_batch_size=4", "micro_batch_size=4", "optimizer=adamw"),
    "cpu/small, accumulated": short("cpu/small", "global_batch_size=16", "micro_batch_size=8"),
    "cpu/small, AdamW": short("cpu/small", "global_batch_size=16", "optimizer=adamw"),
    "cpu/small, recomputed": short("cpu/small", "global_batch_size=16", "gradient_checkpointing=true"),
    "cpu/small, ZeRO 2": short(
        "cpu/small",
        *("processes=2", "global_batch_size=8", "micro_batch_size=2", "zero_stage=2", "expert_update_interval=1"),
    ),
    "cpu/medium": short("cpu/medium", "global_batch_size=16"),
    "cpu/medium, 4 sequences": short("cpu/medium", "global_batch_size=4", "micro_batch_size=4", "optimizer=adamw"),
    "gpu/base, 1 sequence, Lion": short("gpu/base", "global_batch_size=1", "micro_batch_size=1", "optimizer=lion"),
}


@dataclass(frozen=True)
class Peak:
    """Attributes:
    process: the most bytes that one process of a training has had.
    all: the most that all of them had together, what they share counted once.
    planned: what the training's own log said, in bytes.
    """

    process: int
    all: int
    planned: int


def shards_for(vocab_size: int, folder: Path) -> Path:
    """Shards with a vocabulary of that size, made where there are none."""
    shards = folder / f"shards-{vocab_size}"
    if not shards.is_dir():
        letters, drawn = "abcdefghijklmnopqrstuvwxyz", random.Random(0)  # noqa: S311
        words = ["".join(drawn.choices(letters, k=8)) for _ in range(vocab_size)]
        text = folder / f"words-{vocab_size}"
        text.mkdir(parents=True)
        for part in range(20):
            drawn.shuffle(words)
            (text / f"{part}.txt").write_text(" ".join(words[: vocab_size // 4] * 2))
        settings = [
            f"data.sources=[{{path: {text}}}]",
            f"tokenizer.vocab_size={vocab_size}",
            "data.split.validation=0.02",
        ]
        filters = ["data.cleaning.max_line_repetition=1.0", "data.deduplication.near=false", "data.split.train=0.96"]
        flags = [part for setting in [*settings, *filters] for part in ("--set", setting)]
        _ava("preprocess", "--params-yaml", "{}", *flags, "--output", shards, "--work", folder / "work")
    return shards


def settings_of(name: str) -> list[str]:
    """`--set` flags of a case."""
    case = CASES[name]
    settings = [*case.settings, *(f"train.{change}" for change in SHORT), f"preset={case.preset}"]
    return [part for setting in settings for part in ("--set", setting)]


def measure(name: str, shards: Path, folder: Path) -> Peak:
    """Train, and watch the processes."""
    output = folder / "model"
    for path in (output, folder / "train-work"):
        shutil.rmtree(path, ignore_errors=True)
    flags = ["--params-yaml", "{}", *settings_of(name), "--shards", shards, "--output", output]
    command = [sys.executable, "-m", "ava_core.cli.main", "train", *map(str, flags), "--work", folder / "train-work"]
    process = all_of_them = 0
    environment = os.environ | CASES[name].environment
    flags = {"stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([*map(str, command), "--quiet"], **flags) as training:
        while training.poll() is None:
            peaks, shares = _sizes(training.pid)
            process, all_of_them = max(process, *peaks), max(all_of_them, sum(shares))
            time.sleep(0.3)
        if training.returncode:
            raise RuntimeError(f"{name}: exit code {training.returncode}\n{training.stderr.read()[-2000:]}")
    planned = json.loads(output.with_name("model.timings.json").read_text())["estimated_memory_bytes"]
    shutil.rmtree(folder / "train-work")
    return Peak(process, all_of_them, planned)


def _sizes(pid: int) -> tuple[list[int], list[int]]:
    """VmHWM and PSS of a process and those below it."""
    peaks, shares = [0], [0]
    with suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(OSError, StopIteration):
                peaks.append(_field(Path(f"/proc/{process.pid}/status"), "VmHWM:"))
                shares.append(_field(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss:"))
    return peaks, shares


def _field(path: Path, name: str) -> int:
    return next(1024 * int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def _ava(*arguments: object) -> None:
    command = [sys.executable, "-m", "ava_core.cli.main", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def estimated(name: str, vocab_size: int) -> int:
    """What `ava config show` says for one process."""
    config = configuration(name)
    with patch.dict(os.environ, CASES[name].environment):
        return estimate(config.model, config.train, vocab_size).total_bytes


def configuration(name: str) -> AvaConfig:
    """The resolved configuration of a case."""
    return resolve(overrides=[flag for flag in settings_of(name) if flag != "--set"]).config


def main() -> None:
    """Print a row per case."""
    names = sys.argv[1:] or list(CASES)
    print(f"{'case':34s} {'estimate':>9s} {'log':>7s} {'real':>7s} {'all':>7s}  estimate/real  log/real", flush=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".ava-memory-") as temporary:
        folder = Path(temporary)
        for name in names:
            shards = shards_for(configuration(name).tokenizer.vocab_size, folder)
            expected = estimated(name, load_splits_info(shards).vocab_size)
            peak = measure(name, shards, folder)
            sizes = (expected, peak.planned, peak.process, peak.all)
            print(
                f"{name:34s} {' '.join(f'{size / GIB:7.2f}' for size in sizes)}"
                f" {expected / peak.process:13.2f} {peak.planned / peak.process:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
