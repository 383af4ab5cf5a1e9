"""`evaluate.tasks` in the step: opened before any model is loaded, run on each, written down beside the figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ava_core.config.evaluate import EvaluateConfig
from ava_core.progress import Progress

if TYPE_CHECKING:
    from ava_core.tasks.opening import OpenTask
    from ava_core.tasks.running import TaskResult

KEY = "evaluate.tasks"
FOLDER = "tasks"
"""In the output: the questions of our own tasks, and what each model answered."""
ANSWERS = "answers.jsonl"


@dataclass(kw_only=True)
class Benchmarks:
    """The tasks of one evaluation, and their results by model; lm-eval is imported only where there are any.

    Attributes:
        config: the section `evaluate`.
        state: the step's state folder.
        tasks: what is run on each model.
        results: what came out, by the model's name.
    """

    config: EvaluateConfig
    state: Path
    tasks: list[OpenTask]
    results: dict[str, list[TaskResult]] = field(default_factory=dict)

    @classmethod
    def open(cls, config: EvaluateConfig, documents: Sequence[str], state: Path) -> Benchmarks:
        """Find the tasks and their data.

        Raises:
            ConfigError: one can't be run here; one line per fault.
        """
        tasks: list[OpenTask] = []
        if config.tasks:
            from ava_core.tasks.opening import open_tasks

            tasks = open_tasks(config.tasks, documents, state / FOLDER, where=KEY)
        return cls(config=config, state=state, tasks=tasks)

    def run(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress
    ) -> dict[str, float]:
        """Run the tasks on a model; their figures, by name without prefix.

        Raises:
            AvaError: a task fails.
        """
        if not self.tasks:
            return {}
        from ava_core.tasks.running import run_tasks

        rows = self.config.batch_size
        self.results[name] = run_tasks(
            self.tasks, model, tokenizer, rows=rows, name=name, kept=self.state, progress=progress
        )
        return {figure: value for result in self.results[name] for figure, value in result.figures().items()}

    def contents(self) -> dict[str, Any]:
        """For evaluation.json: nothing where there are no tasks."""
        if not self.tasks:
            return {}
        return {"tasks": {name: [result.to_json() for result in results] for name, results in self.results.items()}}

    def write(self, output: Path) -> None:
        """Leave our own tasks, as lm-eval runs them on another model, and each model's answers in `output`/tasks."""
        if not self.tasks:
            return
        folder = output / FOLDER
        folder.mkdir()
        for task in self.tasks:
            for path in (task.made, task.made.with_suffix(".jsonl")) if task.made else ():
                shutil.copyfile(path, folder / path.name)
        rows = [
            {"model": name, "task": result.name, **answer}
            for name, results in self.results.items()
            for result in results
            for answer in result.answers
        ]
        (folder / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in rows))
