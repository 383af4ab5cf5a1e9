"""Logging a training to the tracking server while it runs.

    with live_run(experiment="ava", parameters=..., state=run.state):
        launch(...)

It never blocks the training and never fails it: a process of its own (`ava_core.tracking.sender`) tails the files in
the state folder, retries while the server doesn't answer, and catches up when it does. `ava register` makes a run of
its own with the whole history.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ava_core
from ava_core.config.run import RunConfig
from ava_core.errors import ConfigError
from ava_core.files import write_json
from ava_core.redaction import redact_address
from ava_core.tracking.address import given_uri
from ava_core.tracking.authorship import authorship
from ava_core.tracking.feed import Feed
from ava_core.tracking.labels import run_tags
from ava_core.tracking.pipeline_runs import identity, pipeline_run_id
from ava_core.tracking.records import flatten
from ava_core.tracking.sender import HISTORY
from ava_core.tracking.sinks import MLFLOW, Assignment

log = logging.getLogger(__name__)
NAME = "train"
IDENTITY = "ava.training"
NOTE = "live.json"
"""In the state folder: the identity, so that a resumed training goes on in its run."""
CLOSING_MARGIN = 8.0
"""Seconds beyond `Assignment.closing` after which the process is ended: it may still be importing MLflow."""


@contextmanager
def live_runs(
    *,
    experiment: str,
    parameters: Mapping[str, Any],
    state: Path,
    run: RunConfig,
    folder: Path,
    attachments: Mapping[str, Path],
    parent: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Log the training inside the block while it runs: to MLflow, if there is an address, and to `run.trackers`.

    Args:
        experiment, parameters, state, parent, environment: as of `live_run`.
        run: name, tags, notes and trackers.
        folder: of the trackers that write files; each has a folder in it.
        attachments: as of `Assignment`.
    """
    environment = os.environ if environment is None else environment
    with ExitStack() as stack:
        stack.enter_context(
            live_run(
                experiment=experiment,
                parameters=parameters,
                state=state,
                environment=environment,
                run=run,
                parent=parent,
                attachments=attachments,
            )
        )
        for tracker in run.trackers:
            assignment = Assignment(
                tracker=tracker,
                experiment=experiment,
                name=run.name or NAME,
                identity={IDENTITY: _identity(state)},
                tags={"ava.step": NAME, **_lineage(parent), **run.tags},
                notes=run.notes or "",
                parameters=flatten(parameters),
                state=str(state.absolute()),
                folder=str((folder / tracker).absolute()),
            )
            stack.enter_context(LiveRun(assignment, environment))
        yield


def live_run(
    *,
    experiment: str,
    parameters: Mapping[str, Any],
    state: Path,
    environment: Mapping[str, str] | None = None,
    parent: str = "",
    run: RunConfig | None = None,
    attachments: Mapping[str, Path] | None = None,
) -> AbstractContextManager[Any]:
    """Log the training inside the block to MLflow while it runs; does nothing without an address in the environment.

    Args:
        experiment: `register.experiment` of the configuration.
        parameters: the resolved configuration; its values become the run's parameters.
        state: the training's state folder.
        environment: os.environ by default.
        parent: digest of the model that the training begins from.
        run: name, tags and notes.
        attachments: as of `Assignment`.
    """
    environment = os.environ if environment is None else environment
    run = run or RunConfig()
    try:
        uri = given_uri(environment)
    except ConfigError as error:
        log.warning("mlflow: the training isn't shown: %s", error)
        return nullcontext()
    if uri is None:
        return nullcontext()
    pipeline_run = pipeline_run_id(environment)
    return LiveRun(
        Assignment(
            uri=uri,
            experiment=experiment,
            # In a pipeline it is the step's own run, whoever opens it first; its name tells it from the other steps'.
            name=NAME if pipeline_run else run.name or NAME,
            identity=identity(pipeline_run, NAME) if pipeline_run else {IDENTITY: _identity(state)},
            tags={"ava.step": NAME, **authorship(f"ava {NAME}"), **_lineage(parent), **run_tags(run)},
            notes=run.notes or "",
            parameters=flatten(parameters),
            state=str(state.absolute()),
            attachments={name: str(path.absolute()) for name, path in (attachments or {}).items()},
        ),
        environment,
    )


class LiveRun:
    """The process that logs a training while it runs; a context manager.

    Args:
        assignment: which files it sends to which run.
        environment: of the process.
    """

    def __init__(self, assignment: Assignment, environment: Mapping[str, str]) -> None:
        self.assignment, self.environment = assignment, environment
        self.sent = 0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> LiveRun:
        # Without the current folder on the path: a module of the user's there may be called like one of Python's.
        paths = [str(Path(ava_core.__file__).parents[1]), self.environment.get("PYTHONPATH", "")]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ava_core.tracking.sender"],
                env={**self.environment, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is the training's to hear; this process hears of its end
            )
        except OSError as error:
            log.warning("%s: the training isn't shown: %s", self.assignment.tracker, error)
            return self
        # Through the pipe, since an address may hold a password and a command line is everyone's to read.
        self._tell(json.dumps(asdict(self.assignment)))
        self._reader = threading.Thread(target=self._listen, name="mlflow", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Wait a bounded time for the rows that aren't sent yet, and log how many were left."""
        if self._process is None or self._reader is None:
            return
        process, self._process = self._process, None
        self._tell("fail" if failed else "finish", process)
        try:
            process.wait(self.assignment.closing + CLOSING_MARGIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        unsent = len(Feed(Path(self.assignment.state) / HISTORY, "step", self.sent).read())
        if unsent:
            given = self.assignment
            shown = f"sent to {redact_address(given.uri)}" if given.uri else f"written to {given.folder}"
            later = ": `ava register` logs the whole history" if given.tracker == MLFLOW else ""
            log.warning("%s: %d of %d steps were not %s%s", given.tracker, unsent, unsent + self.sent, shown, later)

    def _tell(self, line: str, process: subprocess.Popen[str] | None = None) -> None:
        pipe = (process or self._process).stdin  # type: ignore[union-attr]
        with suppress(OSError):  # the process has ended; close() says what wasn't sent
            pipe.write(line + "\n")  # type: ignore[union-attr]
            pipe.flush()  # type: ignore[union-attr]

    def _listen(self) -> None:
        """Log what the process reports, until it ends."""
        shown: str | None = None
        failing, tracker = False, self.assignment.tracker
        for line in self._process.stdout:  # type: ignore[union-attr]
            event = json.loads(line)
            if "fault" in event:
                failing = True
                later = "its figures follow once the server answers" if tracker == MLFLOW else "it is tried again"
                log.warning("%s: %s; the training goes on, %s", tracker, event["fault"], later)
            elif "run" in event:
                if failing:
                    log.info("%s: the server answers" if tracker == MLFLOW else "%s: goes on", tracker)
                if event["run"] != shown and event["run"]:
                    log.info("%s: the training is shown %s", tracker, _where(tracker, event["run"]))
                failing, shown = False, event["run"]
            else:
                self.sent = event["sent"]


def _lineage(parent: str) -> dict[str, str]:
    return {"ava.parent": parent} if parent else {}


def _where(tracker: str, address: str) -> str:
    """An address, a file, or the command that shows it."""
    return f"by `{address}`" if address.startswith(("tensorboard ", "wandb ")) else f"at {address}"


def _identity(state: Path) -> str:
    """Of the training whose state this is; kept in the state folder, and new for a training that starts anew."""
    note = state / NOTE
    try:
        return str(json.loads(note.read_text())["training"])
    except (OSError, ValueError, KeyError, TypeError):
        identity = uuid.uuid4().hex
        write_json(note, {"training": identity})
        return identity
