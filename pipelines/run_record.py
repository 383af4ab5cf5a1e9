"""RUN/runner.json: who runs a pipeline, and which of its tasks are running, while it runs.

Whoever comes after a runner that was killed (SIGKILL, memory, power) finds it, ends what was left running, and records
how that run ended. A run that ends in any other way removes it.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ava_core.files import write_json
from pipelines import docker_executor
from pipelines.executor import GRACE_SECONDS
from pipelines.processes import Process

NAME = "runner.json"


class RunRecord:
    """The record of a run that is going on; its methods may be called from several threads.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def note(self, task: str, handle: Any) -> None:
        """Record that a task runs, or with None that it has ended.

        Args:
            task: its name.
            handle: by which another process finds it: see `RunningTask`.
        """
        with self._lock:
            if handle is None:
                self._tasks.pop(task, None)
            else:
                self._tasks[task] = handle
            write_json(self.run / NAME, {"runner": asdict(Process.of(os.getpid())), "tasks": self._tasks})

    def remove(self) -> None:
        """Remove the record: the run has ended, and its outcome is written."""
        (self.run / NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class LeftRun:
    """A run whose runner was killed.

    Attributes:
        folder: the run's folder.
        tasks: handles of the tasks that ran, by name.
    """

    folder: Path
    tasks: dict[str, Any]

    def end_tasks(self) -> None:
        """End what is left running of it; an engine that is away now can't be running a container of it."""
        for handle in self.tasks.values():
            if isinstance(handle, dict):
                Process(**handle).end_group(GRACE_SECONDS)
            else:
                docker_executor.remove(handle)


def is_going_on(run: Path) -> bool:
    """Whether a run has a record: its runner is at work, or was killed."""
    return (run / NAME).is_file()


def find_left(runs: Path) -> Iterator[LeftRun]:
    """Runs below `runs` whose runner no longer runs, and that have no outcome."""
    for path in sorted(runs.glob(f"*/{NAME}")):
        try:
            record = json.loads(path.read_text())
            if not Process(**record["runner"]).running:
                yield LeftRun(path.parent, record["tasks"])
        except (OSError, ValueError, TypeError, KeyError):  # removed meanwhile, or not ours
            continue
