"""Tasks run on one model, each kept as it is finished, and their results as figures."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.files import write_whole
from ava_core.progress import Progress
from ava_core.tasks.isolation import isolated
from ava_core.tasks.language_model import BenchmarkedModel
from ava_core.tasks.opening import OpenTask

log = logging.getLogger(__name__)
PREFIX = "tasks."
"""What the names of the figures begin with."""
RESAMPLES = 1000
"""Of the bootstrap, for metrics whose error has no closed form."""
NOT_FIGURES = ("name", "alias", "sample_len", "sample_count")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What one task, or a group of tasks, gave.

    Attributes:
        name: of the task.
        items: questions.
        num_fewshot: examples before each.
        metrics: value by name of the metric, with the filter's name behind it where a task has several.
        errors: standard error of the metrics that have one.
        higher_is_better: by metric, where it is known.
        answers: for each question its number and what it counts for in the metrics, where that is a number.
    """

    name: str
    items: int
    num_fewshot: int
    metrics: dict[str, float]
    errors: dict[str, float]
    higher_is_better: dict[str, bool]
    answers: list[dict[str, float]]

    def figures(self) -> dict[str, float]:
        """`tasks.NAME.METRIC` and `tasks.NAME.METRIC_stderr`."""
        head = f"{PREFIX}{_plain(self.name)}."
        return {
            **{f"{head}{metric}": value for metric, value in self.metrics.items()},
            **{f"{head}{metric}_stderr": value for metric, value in self.errors.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """All but the answers."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}


def run_tasks(
    tasks: Sequence[OpenTask],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    name: str,
    kept: Path | None,
    progress: Progress,
) -> list[TaskResult]:
    """Run all tasks on a model.

    Args:
        tasks: as `open_tasks` gives them.
        model: in evaluation mode.
        tokenizer: of the same folder.
        rows: contexts at once.
        name: of the model.
        kept: folder for the results of finished tasks, which a killed run finds again; None: none are kept.
        progress: shows a bar for each kind of request.

    Raises:
        AvaError: a task fails, or gives what isn't a number.
    """
    lm = BenchmarkedModel(model, tokenizer, rows, progress)
    results: list[TaskResult] = []
    for index, task in enumerate(tasks):
        path = kept / f"{name}.task-{index}.json" if kept else None
        if path is not None and path.is_file():
            results += [TaskResult(**fields) for fields in json.loads(path.read_text())]
            continue
        lm.label = f"{task.entry.label} {name}"
        found = run_task(task, lm)
        for result in found:
            log.info("tasks: %s: %s", name, describe(result))
        if path is not None:
            write_whole(path, json.dumps([asdict(result) for result in found]), durable=True)
        results += found
    return results


def run_task(task: OpenTask, lm: Any) -> list[TaskResult]:
    """One entry's results: of its tasks, and of its groups where they have a figure of their own.

    Args:
        task: as `open_tasks` gives it.
        lm: an `LM` of lm-eval's.

    Raises:
        AvaError: lm-eval fails, or a metric isn't a number.
    """
    for each in task.loaded["tasks"].values():
        each.set_fewshot_seed(task.entry.seed)
    try:
        with isolated():
            found: Any = evaluate(
                lm=lm,
                task_dict=task.loaded,
                limit=task.limit,
                bootstrap_iters=RESAMPLES,
                log_samples=True,
            )
    except AvaError as error:
        raise AvaError(f"{task.entry.label}: {error}") from error
    except Exception as error:  # a task's own code may raise anything
        raise AvaError(f"{task.entry.label}: lm-eval fails on it: {type(error).__name__}: {error}") from error
    return [result for name, values in found["results"].items() if (result := _result(name, values, found)) is not None]


def describe(result: TaskResult) -> str:
    """A result in words, for logs."""
    parts = [
        f"{metric} {value:.4f}" + (f" ± {result.errors[metric]:.4f}" if metric in result.errors else "")
        for metric, value in result.metrics.items()
    ]
    return f"{result.name}: {', '.join(parts)} ({result.items} questions)"


def _result(name: str, values: dict[str, Any], found: dict[str, Any]) -> TaskResult | None:
    keys = [key for key in values if key not in NOT_FIGURES and not isinstance(values[key], str)]
    filters = {key.partition(",")[2] for key in keys}
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    better: dict[str, bool] = {}
    for key in keys:
        metric, _, filtered = key.partition(",")
        is_error = metric.endswith("_stderr")
        base = metric.removesuffix("_stderr")
        figure = _plain(base if len(filters) == 1 else f"{base}.{filtered}")
        number = _number(values[key])
        if is_error:
            if number is not None:
                errors[figure] = number
            continue
        if number is None:
            raise AvaError(
                f"{name}: its metric {metric} is {values[key]!r}, no finite number: leave the metric, or the task, out"
            )
        metrics[figure] = number
        direction = found["higher_is_better"].get(name, {}).get(base)
        if direction is not None:
            better[figure] = bool(direction)
    if not metrics:
        return None  # a group without a figure of its own
    samples = found.get("samples", {}).get(name, ())
    return TaskResult(
        name=name,
        items=int(values.get("sample_len") or found["n-samples"].get(name, {}).get("effective", 0)),
        num_fewshot=int(found["n-shot"].get(name) or 0),
        metrics=metrics,
        errors=errors,
        higher_is_better=better,
        answers=[_answer(sample, len(filters) > 1) for sample in samples],
    )


def _answer(sample: dict[str, Any], filtered: bool) -> dict[str, float]:
    suffix = f".{sample['filter']}" if filtered else ""
    values = {_plain(f"{metric}{suffix}"): _number(sample.get(metric)) for metric in sample["metrics"]}
    return {"item": sample["doc_id"], **{metric: value for metric, value in values.items() if value is not None}}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _plain(name: str) -> str:
    """A name as figures may have it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace("++", "pp"))
