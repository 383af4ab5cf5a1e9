"""The exit handler of a run in which kfp.local can't run it: one that was interrupted, broken, or killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ava_core.errors import AvaError
from pipelines.executor import Executor, supervise
from pipelines.graph import Component
from pipelines.results import CONSOLE_LOG
from pipelines.task_outputs import EXECUTOR_OUTPUT

OUTCOME = "outcome"
"""The component's output, a folder with outcome.json."""
SECONDS = 60.0
"""Time limit of the exit handler. It takes half a second, and a server that is away costs it some more."""


def has_run(run: Path, handler: Component) -> bool:
    """Whether the run's outcome is written."""
    return (run / handler.name / OUTCOME).is_dir()


def record(
    run: Path,
    handler: Component,
    executor: Executor,
    variables: Mapping[str, str],
    *,
    state: str,
    task: str,
    message: str,
) -> str:
    """Run the exit handler: it writes the outcome, and ends what is still open of the run in MLflow.

    Args:
        run: the run's folder.
        handler: the exit handler's component.
        executor: where it runs.
        variables: environment variables of a task.
        state: CANCELLED or FAILED.
        task: the task in which it happened; may be empty.
        message: what happened, in one line.

    Returns:
        why it failed, or an empty string.
    """
    folder = run / handler.name
    status = {"state": state, "pipelineTaskName": task or None, "error": {"message": message}}
    command = [*handler.program, "--status", json.dumps(status), "--output", str(folder / OUTCOME)]
    command += ["--executor-output", str(folder / EXECUTOR_OUTPUT)]
    given = {**variables, "AVA_PIPELINE_RUN": run.name}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        started = executor.start(command, image=handler.image, name=f"{run.name}-{handler.name}-end", variables=given)
        ending = supervise(started, log=folder / CONSOLE_LOG, timeout=SECONDS)
    except AvaError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return "" if ending.succeeded else str(ending)
