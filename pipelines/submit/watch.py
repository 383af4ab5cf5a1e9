"""Wait for the end of a run, and say on the way what its tasks do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, sleep, strftime
from typing import Any

from kfp import Client
from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pipelines.submit.errors import OUTCOME_UNKNOWN, describe_answer, describe_failure
from pipelines.submit.runs import ENDED

POLL_SECONDS = 5.0
OUTAGE_SECONDS = 600.0
"""How long a server may be away: a forwarded port breaks and a server is updated, while the run goes on."""
NAME_WIDTH = 20


def watch(client: Client, run_id: str, show: Callable[[str], None] = print) -> Any:
    """The run as it is when it has ended; `show` gets a line for each new state of each task.

    The client's own wait doesn't know CANCELED and would never return.
    """
    seen: dict[str, str] = {}
    away_since: float | None = None
    while True:
        try:
            run = client.get_run(run_id)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status not in (429, *OUTCOME_UNKNOWN):
                raise
            if away_since is None:
                away_since = monotonic()
                show(f"{_clock()}  {_describe(error)}: waiting for it")
            elif monotonic() - away_since > OUTAGE_SECONDS:
                raise
        else:
            away_since = None
            for line in changes(run, seen):
                show(line)
            if run.state in ENDED:
                return run
        sleep(POLL_SECONDS)


def changes(run: Any, seen: dict[str, str]) -> Iterator[str]:
    """A line for each task whose state isn't the one in `seen`, which is brought up to date."""
    for task in tasks(run):
        if task.state and seen.get(task.task_id) != task.state:
            seen[task.task_id] = task.state
            yield f"{_clock()}  {task.display_name:<{NAME_WIDTH}}  {task.state}{_after(task)}".rstrip()


def failure(run: Any) -> str:
    """Which tasks of a run failed and why, as one line; empty if the server names none."""
    failed = [f"{task.display_name}{_message(task.error)}" for task in tasks(run) if task.state == "FAILED"]
    return "; ".join(failed) or _message(run.error).lstrip(": ")


def tasks(run: Any) -> list[Any]:
    """A run's own tasks in the order of their start.

    The server lists the pods too that KFP puts around each of them: `root`, `NAME-driver` and `executor`.
    """
    listed = (run.run_details.task_details if run.run_details else None) or []
    shown = [task for task in listed if task.display_name and not _is_pod(task.display_name)]
    return sorted(shown, key=lambda task: (task.start_time is None, task.start_time))


def _is_pod(name: str) -> bool:
    return name in ("root", "executor") or name.endswith("-driver")


def _after(task: Any) -> str:
    seconds = (
        f"  {(task.end_time - task.start_time).total_seconds():.0f} s"
        if task.state in ENDED and task.start_time and task.end_time
        else ""
    )
    return f"{seconds}{_message(task.error)}" if task.state == "FAILED" else seconds


def _message(error: Any) -> str:
    return ": " + " ".join(error.message.split()) if error is not None and error.message else ""


def _describe(error: ApiException | HTTPError) -> str:
    return "the server " + (describe_answer(error) if isinstance(error, ApiException) else describe_failure(error))


def _clock() -> str:
    return strftime("%H:%M:%S")
