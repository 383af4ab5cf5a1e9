"""Benchmarks on a quantised model beside unmodified `lm_eval --model hf` on its float model: answers and time.

Usage: python -m benchmarks.tasks [--model outputs/model --quantized outputs/quantized/int8 --shards outputs/shards]
       [--rounds 3] [--items 500]

Both run `swapped_words` and `next_line` of the test split, in processes that take turns; the time is that of asking the
questions and reckoning the figures, not of imports and loading. lm-eval is run as its command line is by default (one
context at a time) and with 16 at a time. Targets are the constants below; a missed one is printed as such and ends with
exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ava_core.config.hardware import usable_cores
from ava_core.config.tasks import BUILT_IN, TaskConfig
from ava_core.config.threads import let_threads_sleep
from benchmarks.turns import Workers

RATIO = 8.0
"""How many times as fast the quantised model must be as lm-eval's default on the float model."""
ROWS = 16


class Ours:
    """Our decoder under lm-eval's evaluator, as the step `evaluate` runs it."""

    def __init__(self, model: str, shards: str, items: int, threads: int) -> None:
        from ava_core.data.shards import ShardedSplit
        from ava_core.data.tokenizer import decode_documents, load_tokenizer
        from ava_core.generation.loading import load_model
        from ava_core.tasks.opening import open_tasks

        self.model, self.tokenizer = load_model(Path(model), threads)
        self.folder = tempfile.TemporaryDirectory(prefix="ava-bench-tasks-")
        split, tokenizer = ShardedSplit.open(shards, "test"), load_tokenizer(Path(shards) / "tokenizer")
        entries = [TaskConfig(name=name, limit=items) for name in BUILT_IN]
        documents = decode_documents(split, tokenizer)
        self.tasks = open_tasks(entries, documents, Path(self.folder.name), where="benchmark")

    def run(self) -> dict[str, Any]:
        """Seconds and figures of one run."""
        from ava_core.progress import Progress
        from ava_core.tasks.running import run_tasks

        started = time.perf_counter()
        results = run_tasks(
            self.tasks,
            self.model,
            self.tokenizer,
            rows=ROWS,
            name="model",
            kept=None,
            progress=Progress(quiet=True),
        )
        seconds = time.perf_counter() - started
        return {"seconds": seconds, **{name: value for result in results for name, value in result.figures().items()}}


class Theirs:
    """lm-eval with its own model class, which loads the folder by itself."""

    def __init__(self, model: str, folder: str, batch_size: int, threads: int) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        torch.set_num_threads(threads)
        self.lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=batch_size)
        self.manager = TaskManager(include_defaults=False, include_path=folder)

    def run(self) -> dict[str, Any]:
        """Seconds and figures of one run."""
        from lm_eval.evaluator import simple_evaluate

        started = time.perf_counter()
        found: Any = simple_evaluate(self.lm, tasks=list(BUILT_IN), task_manager=self.manager)
        seconds = time.perf_counter() - started
        figures = {
            f"tasks.{name}.{figure}": found["results"][name][f"{figure},none"]
            for name in BUILT_IN
            for figure in ("acc", "acc_stderr")
        }
        return {"seconds": seconds, **figures}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("outputs/model"))
    parser.add_argument("--quantized", type=Path, default=Path("outputs/quantized/int8"))
    parser.add_argument("--shards", type=Path, default=Path("outputs/shards"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=500)
    chosen = parser.parse_args(arguments)
    let_threads_sleep()
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars, a line for every question
    with tempfile.TemporaryDirectory(prefix="ava-bench-tasks-") as folder:
        runs = _measure(chosen, _write(chosen.shards, Path(folder), chosen.items))
    return _report(runs, chosen.rounds)


def _write(shards: Path, folder: Path, items: int) -> Path:
    """The tasks as files, with the paths of their questions whole: lm-eval is started elsewhere."""
    import yaml

    from ava_core.data.shards import ShardedSplit
    from ava_core.data.tokenizer import decode_documents, load_tokenizer
    from ava_core.tasks.files import write_task
    from ava_core.tasks.held_out import make_task

    documents = decode_documents(ShardedSplit.open(shards, "test"), load_tokenizer(shards / "tokenizer"))
    for name in BUILT_IN:
        seed = TaskConfig(name=name).seed
        path = write_task(make_task(name, documents, seed=seed, count=items), seed, folder)
        settings = yaml.safe_load(path.read_text())
        settings["dataset_kwargs"]["data_files"]["test"] = str(folder / f"{name}.jsonl")
        path.write_text(yaml.safe_dump(settings))
    return folder


def _measure(chosen: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    threads = usable_cores()
    ours = {"shards": str(chosen.shards.absolute()), "items": chosen.items, "threads": threads}
    theirs = {"model": str(chosen.model.absolute()), "folder": str(folder), "threads": threads}
    subjects = [
        ("ava quantized", "benchmarks.tasks:Ours", {"model": str(chosen.quantized.absolute()), **ours}),
        ("ava float", "benchmarks.tasks:Ours", {"model": str(chosen.model.absolute()), **ours}),
        ("lm_eval hf, batch 1", "benchmarks.tasks:Theirs", {**theirs, "batch_size": 1}),
        (f"lm_eval hf, batch {ROWS}", "benchmarks.tasks:Theirs", {**theirs, "batch_size": ROWS}),
    ]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in subjects}
    with Workers(subjects) as workers:
        for _ in range(chosen.rounds):
            for name, answer in workers.ask_each("run").items():
                runs[name].append(answer)
        if workers.failures:
            sys.exit("; ".join(workers.failures.values()))
    return runs


def _report(runs: dict[str, list[dict[str, Any]]], rounds: int) -> int:
    first, last = "ava quantized", "lm_eval hf, batch 1"
    print(f"{rounds} rounds in turn; seconds: median; ratio: of each round's times, median (least .. greatest)")
    for name, found in runs.items():
        ratios = sorted(theirs["seconds"] / ours["seconds"] for ours, theirs in zip(runs[first], found, strict=True))
        accuracies = ", ".join(
            f"{task} {found[0][f'tasks.{task}.acc']:.4f} ± {found[0][f'tasks.{task}.acc_stderr']:.4f}"
            for task in BUILT_IN
        )
        seconds = median(run["seconds"] for run in found)
        print(f"{name:22} {seconds:8.2f} s  x {median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})  {accuracies}")
    ratio = median(theirs["seconds"] / ours["seconds"] for ours, theirs in zip(runs[first], runs[last], strict=True))
    missed = [f"{ratio:.2f} times as fast as {last}: must be {RATIO:g}"] if ratio < RATIO else []
    for task in BUILT_IN:
        ours, theirs = (runs[name][0][f"tasks.{task}.acc"] for name in (first, last))
        error = runs[last][0][f"tasks.{task}.acc_stderr"]
        if abs(ours - theirs) > error:
            missed.append(f"{task}: {ours:.4f} against {theirs:.4f}: more than one standard error, {error:.4f}")
        if runs["ava float"][0][f"tasks.{task}.acc"] != theirs:
            missed.append(f"{task}: the float model's figure is not lm-eval's")
    for line in missed:
        print(f"missed: {line}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
