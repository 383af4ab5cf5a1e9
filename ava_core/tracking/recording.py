"""Steps of a pipeline as runs of MLflow: opened when a step begins, filled and ended when it ends.

A step is recorded where the environment has the address of a tracking server and either AVA_PIPELINE_RUN (a run nested
under the one parent of that pipeline run) or MLFLOW_RUN_ID (the run that KFP's MLflow plugin has opened). By hand and
under DVC only `ava evaluate` is, when it has finished: `ava train` and `ava register` make runs of their own.

What is recorded changes nothing of the output, so this module enters no step's key. It fails no step, for a server that
is away costs a warning and a bounded time; but a step doesn't begin while the pipeline's experiment is deleted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError, one_line
from ava_core.redaction import redact
from ava_core.runtime import manifest
from ava_core.runtime.outcome import Outcome
from ava_core.runtime.request import Request, StepRun
from ava_core.runtime.work import timings_path
from ava_core.steps.kinds import EVALUATION, SHARDS
from ava_core.tracking.address import RUN_ID, run_url
from ava_core.tracking.authorship import authorship
from ava_core.tracking.commit import read_commit
from ava_core.tracking.connection import variables_set
from ava_core.tracking.evaluated import OUTPUT, TYPE, find_evaluation, log_rows, record_evaluation
from ava_core.tracking.faults import DeletedExperimentError
from ava_core.tracking.labels import run_tags
from ava_core.tracking.pipeline_runs import RUNNING, Task, end_pipeline, open_task, pipeline_run_id
from ava_core.tracking.records import DATASET_CONTEXT, TEST_CONTEXT, Corpus, Point, Row, describe_corpus, flatten
from ava_core.tracking.rest import Run, Server
from ava_core.tracking.run import OWNED
from ava_core.tracking.unfailing import PATIENCE, never_failing, server_uri

Compute = Callable[[StepRun], None]
ReadRows = Callable[[Path], Iterable[Row]]

log = logging.getLogger(__name__)
KEY, INPUTS, REUSED = "ava.key", "ava.inputs", "ava.reused"
FAULT, OUTCOME = "ava.fault", "ava.outcome"
PARENT = "ava.parent"
"""Digest of the model that a training began from."""
STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
"""MLflow's status of a run, by Kubeflow's of a pipeline."""


@contextmanager
def recorded(request: Request, read_rows: ReadRows) -> Iterator[Callable[[Compute], Compute]]:
    """Record the step that runs inside the block; gives what the step's computation is to be wrapped in.

    The step finds its run in MLFLOW_RUN_ID, whoever opened it.

    Args:
        request: what the step was asked for.
        read_rows: gives the rows of an evaluation's output.
    """
    recording = _recording(request, dict(os.environ), read_rows)
    if recording is None:
        yield lambda compute: compute
        return
    variables = recording.begin()
    try:
        with variables_set(variables):
            yield recording.watched
    except BaseException as error:
        recording.end(error)
        raise
    recording.end(None)


def record_end_of_pipeline(outcome: Outcome, environment: Mapping[str, str] | None = None) -> str | None:
    """End the parent run of the pipeline run, and give its page's address; KFP's plugin ends its own."""
    environment = os.environ if environment is None else environment
    uri, pipeline_run = server_uri(environment), pipeline_run_id(environment)
    if uri is None or pipeline_run is None or environment.get(RUN_ID):
        return None
    tags = {OUTCOME: outcome.state}
    if outcome.failed_task:
        tags[FAULT] = _line(f"{outcome.failed_task}: {outcome.message}")
    with never_failing(uri, "the end of the pipeline isn't recorded"):
        server = Server(uri, environment, PATIENCE)
        parent = end_pipeline(server, pipeline_run, STATUS.get(outcome.state, "FAILED"), tags)
        return run_url(uri, parent.experiment_id, parent.run_id) if parent else None
    return None


class _Recording:
    """The run of one step.

    Args:
        request: what the step was asked for.
        uri: address of the tracking server.
        environment: with MLFLOW_RUN_ID or AVA_PIPELINE_RUN.
        read_rows: gives the rows of an evaluation's output.
    """

    def __init__(self, request: Request, uri: str, environment: Mapping[str, str], read_rows: ReadRows) -> None:
        self.request, self.uri, self.environment, self.read_rows = request, uri, environment, read_rows
        self.opened = self.computed = False

    def begin(self) -> dict[str, str]:
        """Show the step as running; variables that give the step its run.

        Raises:
            DeletedExperimentError: the pipeline would fail of that when all is computed.
        """
        if self._alone:
            return {}
        # A server that is still starting, as in a checkout's first run, is there when the step ends.
        with never_failing(
            self.uri, "the step isn't shown as running", silence=logging.DEBUG, but_for=DeletedExperimentError
        ):
            server = Server(self.uri, self.environment, PATIENCE)
            parent, run = self._open(server)
            if OWNED in run.tags and run.status != RUNNING:  # an earlier attempt has failed
                server.set_status(run.run_id, RUNNING)
            server.log(run, tags=self._tags(), parameters=self._parameters(self.request.spec.sections))
            if parent is not None and not parent.parameters:
                server.log(parent, parameters=self._parameters())
            self.opened = True
            return {RUN_ID: run.run_id, "MLFLOW_TRACKING_URI": self.uri}
        return {}

    def watched(self, compute: Compute) -> Compute:
        """The same computation; a step that doesn't get to it takes finished work again."""

        def watched(run: StepRun) -> None:
            self.computed = True
            compute(run)

        return watched

    def end(self, error: BaseException | None) -> None:
        """Record what came out, and end the run unless someone else opened it."""
        if self._alone:
            if error is None:
                self._record_alone()
            return
        if not self.opened and not self.environment.get(RUN_ID) and self.request.spec.name == "register":
            return  # without a run, it has made one of its own
        with never_failing(self.uri, "the step isn't recorded"):
            server = Server(self.uri, self.environment, PATIENCE)
            parent, run = self._open(server)
            status = "FINISHED"
            if error is None:
                self._log_output(server, parent, run)
            elif isinstance(error, Exception):
                status = "FAILED"
                server.log(run, tags={FAULT: _line(str(error) or type(error).__name__)})
            else:  # a signal
                status = "KILLED"
            if OWNED in run.tags:
                server.set_status(run.run_id, status)

    @property
    def _alone(self) -> bool:
        """Whether the step belongs to no pipeline run, and has a run to itself when it has finished."""
        return not (self.environment.get(RUN_ID) or pipeline_run_id(self.environment))

    def _record_alone(self) -> None:
        """A run of the evaluation; none where one with the same contents is there."""
        with never_failing(self.uri, "the evaluation isn't recorded"):
            request = self.request
            made = manifest.read(request.output)
            server = Server(self.uri, self.environment, PATIENCE)
            experiment_id = server.experiment_id(request.config.registry.experiment)
            if find_evaluation(server, experiment_id, made.digest):
                return
            figures = self._figures()
            run = record_evaluation(
                server,
                experiment_id,
                name=request.config.run.name or f"{request.spec.name} {request.inputs['model'][0].name}",
                tags={**self._tags(), **self._output_tags(made)},
                parameters=self._parameters(request.spec.sections),
                figures=_points({**self._timings(), **figures}),
                corpus=self._corpus(made, figures),
                rows=self.read_rows(request.output),
            )
            log.info("mlflow: %s", run_url(self.uri, experiment_id, run.run_id))

    def _open(self, server: Server) -> tuple[Run | None, Run]:
        """The run that MLFLOW_RUN_ID names, else the step's own in its pipeline run, and that one's parent."""
        pipeline_run = pipeline_run_id(self.environment)
        if pipeline_run is None or self.environment.get(RUN_ID):
            return None, server.active_run(self.environment[RUN_ID])
        # `train`, or `quantize int8`: what tells a step from the others of its pipeline run.
        name = " ".join([self.request.spec.name, *self.request.choices.values()])
        experiment = self.request.config.registry.experiment
        return open_task(
            server,
            Task(
                pipeline_run=pipeline_run,
                name=name,
                experiment=experiment,
                tags=self._tags(),
                run=self.request.config.run,
            ),
        )

    def _tags(self) -> dict[str, str]:
        tags = {"ava.step": self.request.spec.name, **authorship(f"ava {self.request.spec.name}")}
        tags |= run_tags(self.request.config.run)
        commit = self.environment.get("AVA_GIT_COMMIT") or read_commit(Path.cwd())
        return {**tags, "mlflow.source.git.commit": commit} if commit else tags

    def _parameters(self, sections: Sequence[str] | None = None) -> dict[str, str]:
        """The sections of the configuration that the step reads and its flags; the whole configuration without any."""
        resolved = self.request.config.model_dump(mode="json", by_alias=True)
        if sections is None:
            return flatten(resolved)
        return flatten({name: resolved[name] for name in sections} | dict(self.request.choices))

    def _log_output(self, server: Server, parent: Run | None, run: Run) -> None:
        """The output's figures, and what it was made from: once, also if the step is tried again.

        The parent gets the figures that are the same on every run, so that pipeline runs can be compared.
        """
        output = self.request.output
        made = manifest.read(output)
        if run.tags.get(KEY) == made.key:
            return
        figures = self._figures()
        if parent is not None:
            # int8_model_bytes: the figures of two schemes have the same names
            prefix = "".join(f"{value}_" for value in self.request.choices.values())
            server.log(parent, _points(figures, prefix))
        corpus = self._corpus(made, figures)
        is_evaluation = self.request.spec.kind == EVALUATION
        for each, context in ((run, TEST_CONTEXT if is_evaluation else DATASET_CONTEXT), (parent, DATASET_CONTEXT)):
            if each is not None and corpus is not None:
                server.log_corpus(each, corpus, context)
        server.log(run, _points({**self._timings(), **figures}), self._output_tags(made))
        if is_evaluation:
            server.log(run, tags=TYPE)
            log_rows(server, run, self.read_rows(output))

    def _figures(self) -> dict[str, float]:
        return json.loads((self.request.output / "metrics.json").read_text())

    def _timings(self) -> dict[str, float]:
        return json.loads(timings_path(self.request.output).read_text())

    def _output_tags(self, made: manifest.Manifest) -> dict[str, str]:
        tags = {KEY: made.key, OUTPUT: made.digest, INPUTS: json.dumps(made.inputs, sort_keys=True)}
        if begun_from := made.inputs.get("init"):
            tags[PARENT] = begun_from
        return {**tags, REUSED: str(not self.computed).lower()}

    def _corpus(self, made: manifest.Manifest, figures: Mapping[str, float]) -> Corpus | None:
        """The shards that the step made, or was given; None for a step that knows only what was made from them."""
        is_corpus = self.request.spec.kind == SHARDS
        digest = made.digest if is_corpus else made.inputs.get(SHARDS.name)
        sources = self.request.config.model_dump(mode="json", by_alias=True)["data"]["sources"]
        return describe_corpus(sources, digest, figures if is_corpus else {}) if digest else None


def _recording(request: Request, environment: Mapping[str, str], read_rows: ReadRows) -> _Recording | None:
    """None where there is nothing to record: no server, a step that is recorded in pipelines alone and isn't in one, or
    a process that only helps the first one."""
    uri = server_uri(environment)
    if uri is None:
        return None
    if request.spec.kind != EVALUATION and not (environment.get(RUN_ID) or pipeline_run_id(environment)):
        return None
    try:
        first = Ranks.from_environment(environment).is_first
    except ConfigError:  # the step says so itself
        first = False
    return _Recording(request, uri, environment, read_rows) if first else None


def _points(figures: Mapping[str, float], prefix: str = "") -> list[Point]:
    step = int(figures.get("steps", 0))
    return [Point(prefix + name, float(value), step) for name, value in figures.items()]


def _line(text: str) -> str:
    return redact(one_line(text))[:1000]
