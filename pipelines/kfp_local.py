"""Patches of kfp.local for the time of a run: who runs a task, where it writes, where kfp.local's own output goes.

`kfp.local.SubprocessRunner` refuses container components, and its DockerRunner reports failed ones as done. The handler
of a task is looked up by the runner's type when the task starts, so ours takes its place for the time of a run, and
runs the component's command as it stands in the IR. A test pins what this relies on.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import json
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

RunTask = Callable[[str, list[str], Mapping[str, str]], bool]
"""Runs the command of a task: image, command, variables; whether it succeeded."""


@contextlib.contextmanager
def installed(run_task: RunTask, started: Callable[[Path, str], None]) -> Iterator[None]:
    """Replace kfp.local's task handler, and give every task a folder of its own; put everything back afterwards.

    Args:
        run_task: runs a task, from its image, its command and the variables in the IR; True if it succeeded.
        started: told the folder of each task and the name of its component, before the task is run.
    """
    from kfp.local import config, executor_input_utils, subprocess_task_handler

    handler = subprocess_task_handler.SubprocessTaskHandler
    task_root = executor_input_utils.construct_local_task_root
    uses: Counter[str] = Counter()
    lock = threading.Lock()

    def own_root(*, pipeline_root: str, pipeline_resource_name: str, task_resource_name: str) -> str:
        """kfp.local names a task's folder after its component: two tasks of one would write into the same."""
        with lock:
            uses[task_resource_name] += 1
            number = uses[task_resource_name]
        root = task_root(pipeline_root, pipeline_resource_name, task_resource_name)
        root += f".{number}" if number > 1 else ""
        started(Path(root), task_resource_name)
        return root

    subprocess_task_handler.SubprocessTaskHandler = lambda **given: _Task(run_task, **given)
    executor_input_utils.construct_local_task_root = own_root
    try:
        yield
    finally:
        subprocess_task_handler.SubprocessTaskHandler = handler
        executor_input_utils.construct_local_task_root = task_root
        config.LocalExecutionConfig.instance = None


class _Task:
    """kfp.local's ITaskHandler for one task."""

    def __init__(
        self,
        run_task: RunTask,
        *,
        image: str,
        full_command: list[str],
        env_vars: dict[str, str] | None = None,
        **_: Any,
    ) -> None:
        self.run_task = run_task
        self.image = image
        self.command = full_command
        self.variables = env_vars or {}

    def run(self) -> Any:
        from kfp.local.status import Status

        return Status.SUCCESS if self.run_task(self.image, self.command, self.variables) else Status.FAILURE


def without_retries(spec: Mapping[str, Any]) -> str:
    """The pipeline with each task tried once: what fails on one node of a cluster may pass on another, not here."""
    tried_once = copy.deepcopy(dict(spec))
    for definition in [tried_once["root"], *tried_once["components"].values()]:
        for task in definition.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return json.dumps(tried_once, ensure_ascii=False)  # JSON is YAML


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send kfp.local's own chatter, coloured and three lines a task, to a file.

    It swaps `print` and the root logger's handlers for each task, and leaves them swapped where tasks ran in parallel.
    """
    root, own_print = logging.getLogger(), builtins.print
    level, handlers = root.level, root.handlers[:]
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            builtins.print = own_print
            root.handlers[:] = handlers
            root.setLevel(level)
