"""Benchmarks while the model learns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ava_core.config.tasks import TaskConfig
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import decode_documents, load_tokenizer
from ava_core.progress import Progress
from ava_core.training.callbacks.base import Callback, Row, Run

if TYPE_CHECKING:
    from ava_core.tasks.opening import OpenTask

log = logging.getLogger(__name__)
KEY = "train.tasks"
FOLDER = "tasks"


class Tasks(Callback):
    """Runs benchmarks every `every` steps with the weights as they are; their figures go to the step's row.

    Our own tasks are made from the validation split: the test split stays unseen until the model is finished. The
    training's random numbers stay as they were, and so do the weights that it ends with.

    Args:
        every: `train.tasks_every`.
        entries: `train.tasks`.
        limit: `train.tasks_limit`; an entry's own is smaller or none.
        rows: contexts at once.
        split: what our own tasks are made from.
        tokenizer: folder of the tokenizer.
        state: the training's state folder.
    """

    def __init__(
        self,
        every: int,
        entries: Sequence[TaskConfig],
        limit: int,
        rows: int,
        split: ShardedSplit,
        tokenizer: Path,
        state: Path,
    ) -> None:
        self.every, self.rows = every, rows
        self.entries = [entry.model_copy(update={"limit": min(limit, entry.limit or limit)}) for entry in entries]
        self.split, self.state = split, state
        self.tokenizer = load_tokenizer(tokenizer)
        self._tasks: list[OpenTask] | None = None

    def on_start(self, run: Run) -> None:
        """Find the tasks and their data, before the first step.

        Raises:
            ConfigError: one can't be run here; one line per fault.
        """
        if self._runs_here(run):
            from ava_core.tasks.opening import open_tasks

            documents = decode_documents(self.split, self.tokenizer)
            folder = self.state / FOLDER / str(run.ranks.rank)
            self._tasks = open_tasks(self.entries, documents, folder, where=KEY)

    def after_step(self, run: Run, row: Row) -> None:
        """Add `tasks.NAME.METRIC` to the row, and to the log."""
        if int(row["step"]) % self.every or self._tasks is None:
            return
        found = self._run(run.model)
        if run.ranks.is_first:
            row |= found

    def _runs_here(self, run: Run) -> bool:
        # Under ZeRO 3 a pass gathers weights from all ranks, so all make it, with the same questions.
        return run.ranks.is_first or run.config.zero_stage == 3

    def _run(self, model: Any) -> Row:
        from ava_core.tasks.running import run_tasks

        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng():
                results = run_tasks(
                    self._tasks or [],
                    model,
                    self.tokenizer,
                    rows=self.rows,
                    name="model",
                    kept=None,
                    progress=Progress(quiet=True),
                )
        finally:
            model.train(training)
        return {name: value for result in results for name, value in result.figures().items()}
