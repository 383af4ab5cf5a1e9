"""How a local run and its tasks ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CONSOLE_LOG = "console.log"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How a task ended.

    Attributes:
        name: its folder's name: the component's, with a number from its second task on.
        component: the component's name.
        status: whether it exited with 0 and left the outputs that its component declares.
        cached: its step reused finished work.
        seconds: wall-clock time.
        folder: where its outputs lie.
        figures: its metrics by name, and its timings.
        fault: why it failed, in one line; empty otherwise.
    """

    name: str
    component: str
    status: Literal["succeeded", "failed"]
    cached: bool
    seconds: float
    folder: Path
    figures: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""

    @property
    def log(self) -> Path:
        """Everything that the task printed."""
        return self.folder / CONSOLE_LOG


@dataclass(kw_only=True)
class PipelineResult:
    """How a run of the pipeline ended.

    Attributes:
        order: the component of each task, in the order in which they run when nothing fails.
        tasks: the tasks that ran, in order.
        fault: what kfp.local said if it failed; empty otherwise.
    """

    order: list[str] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)
    fault: str = ""

    @property
    def skipped(self) -> list[str]:
        """Components whose tasks didn't run."""
        missing = Counter(self.order) - Counter(task.component for task in self.tasks)
        return [name for name in dict.fromkeys(self.order) if name in missing]

    @property
    def succeeded(self) -> bool:
        """Every task ran and succeeded, and kfp.local thinks so too."""
        return not self.fault and not self.skipped and self.failed is None

    @property
    def failed(self) -> TaskResult | None:
        """The first task that failed."""
        return next((task for task in self.tasks if task.status == "failed"), None)

    def folder(self, name: str) -> Path | None:
        """Where the outputs of a task lie; None if it didn't run or failed."""
        return next((task.folder for task in self.tasks if task.name == name and task.status == "succeeded"), None)


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that aren't blank."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-count:]
