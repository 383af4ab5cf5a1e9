"""One training of the quality benchmark as a process of its own, and what it came to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ava_core.config.yaml_text import to_yaml


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Attributes:
    bits_per_byte: of the whole validation part.
    seconds: from the first step to the last, without evaluations.
    startup_seconds: from the start of the process to its first step.
    steps, tokens_per_second, parameters: of the training.
    """

    bits_per_byte: float
    seconds: float
    startup_seconds: float
    steps: float
    tokens_per_second: float
    parameters: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def run_training(shards: Path, settings: Mapping[str, Any], seed: int, threads: int, folder: Path) -> Finished:
    """`ava train` with `settings` (sections `model` and `train`).

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    output = folder / "model"
    shutil.rmtree(folder / "work", ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    params = {"seed": seed, "threads": threads, "model": settings["model"], "train": settings["train"]}
    command = [sys.executable, "-m", "ava_core.cli.main", "train", "--params-yaml", to_yaml(params), "--quiet"]
    command += ["--shards", str(shards), "--output", str(output), "--work", str(folder / "work")]
    _call(command, threads)
    metrics = json.loads((output / "metrics.json").read_text())
    timings = json.loads(output.with_name("model.timings.json").read_text())
    return Finished(
        bits_per_byte=metrics["validation_bits_per_byte"],
        seconds=timings["training_seconds"],
        startup_seconds=timings["startup_seconds"],
        steps=metrics["steps"],
        tokens_per_second=timings["tokens_per_second"],
        parameters=metrics["parameters"],
    )


def run_baseline(text: Path, seed: int, threads: int, steps: int = 2000) -> Finished:
    """`benchmarks.char_gpt`; its tokens are characters."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.char_gpt", str(text), "--seed", str(seed), "--steps", str(steps)]
    figures = json.loads(_call(command, threads))
    return Finished(
        bits_per_byte=figures["bits_per_byte"],
        seconds=figures["seconds"],
        startup_seconds=time.perf_counter() - started - figures["seconds"] - figures["scoring_seconds"],
        steps=steps,
        tokens_per_second=figures["tokens"] / figures["seconds"],
        parameters=figures["parameters"],
    )


def _call(command: Sequence[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("MLFLOW_TRACKING_URI", None)  # nobody watches
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: exit code {finished.returncode}\n{finished.stderr[-2000:]}")
    return finished.stdout
