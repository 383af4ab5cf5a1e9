"""What a tracker gets and how it is written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from ava_core.config.run import TrackerName
from ava_core.errors import ConfigError

MLFLOW = "mlflow"
TRACKERS: dict[TrackerName, str | None] = {"tensorboard": "tensorboard", "wandb": "wandb", "jsonl": None}
"""By name, the package that it needs; the extra `trackers` brings it along."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which files are sent to which run; plain values.

    Attributes:
        tracker: MLFLOW, or one of `TRACKERS`.
        uri: address of MLflow's server; empty for the others.
        experiment: its name; for MLflow unless MLFLOW_RUN_ID names a run.
        name: of a new run.
        identity: tags that only this training's run has.
        tags: further tags.
        notes: what the run is about.
        parameters: of the run.
        state: the training's state folder.
        folder: where a tracker that writes files has its own.
        attachments: folders whose files belong to the run, by the name that they have there; they may be missing.
        every: seconds between two reads of the files.
        closing: seconds after the training's end in which the rest is tried.
    """

    tracker: str = MLFLOW
    uri: str = ""
    experiment: str
    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str]
    notes: str = ""
    parameters: Mapping[str, str]
    state: str
    folder: str = ""
    attachments: Mapping[str, str] = field(default_factory=dict)
    every: float = 2.0
    closing: float = 10.0


class Sink(Protocol):
    """A run of a tracker, opened.

    Attributes:
        address: where people find it.
        last_step: of the history's rows that it has, the last one's step.
        last_time: of the system's rows that it has, the last one's time in milliseconds since 1970.
    """

    address: str
    last_step: int
    last_time: int

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[int]:
        """Take rows with a `step`; gives the last step that it has whenever it has taken some."""

    def log_system(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rows with a `time` and a `step`."""

    def attach(self, name: str, folder: str) -> None:
        """Take the files of a folder, where the tracker keeps files."""

    def end(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""


def open_sink(assignment: Assignment) -> Sink:
    """Open the run that an assignment names.

    Raises:
        Exception: whatever the tracker's library raises; AvaError: in one line.
    """
    module = import_module(f"ava_core.tracking.sinks.to_{assignment.tracker}")
    return module.open_sink(assignment)


def require_installed(trackers: Iterable[TrackerName]) -> None:
    """Refuse, before the work, trackers whose library is missing.

    Raises:
        ConfigError: one line for each.
    """
    faults = [
        f"run.trackers: {name}: needs {package}, which isn't installed: pip install 'ava-moe[trackers]', or leave it"
        " out"
        for name in trackers
        if (package := TRACKERS[name]) is not None and find_spec(package) is None
    ]
    if faults:
        raise ConfigError(*faults)
