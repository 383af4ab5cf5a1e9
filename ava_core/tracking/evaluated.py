"""Evaluations as MLflow's evaluation runs: each row of one is a trace, and the page holds two runs against each other.

MLflow calls every run without a model among its outputs an evaluation run. What its page shows of one are the traces
that name it as their source, with what was asked, what came, and figures; of two, the traces with the same request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from ava_core.tracking.records import TEST_CONTEXT, Corpus, Point, Row
from ava_core.tracking.rest import Run, Server
from ava_core.tracking.run import OWNED

OUTPUT = "ava.output"
"""Tag with the digest of what a step made."""
TYPE = {"mlflow.runType": "evaluation"}
SOURCE_RUN, SCHEMA, TRACE_NAME = "mlflow.sourceRun", "mlflow.trace_schema.version", "mlflow.traceName"
PREVIEW_CHARACTERS = 10_000
"""MLflow's bound for what a trace shows of its request and response."""


def log_rows(server: Server, run: Run, rows: Iterable[Row]) -> None:
    """Log the rows of an evaluation, a request each; to be called once for a run."""
    now = datetime.now(UTC)
    for number, row in enumerate(rows):
        # The page begins with the youngest.
        at = (now - timedelta(milliseconds=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        trace_id = "tr-" + hashlib.sha256(f"{run.run_id} {number}".encode()).hexdigest()[:32]
        server.start_trace(
            {
                "trace_id": trace_id,
                "trace_location": {
                    "type": "MLFLOW_EXPERIMENT",
                    "mlflow_experiment": {"experiment_id": run.experiment_id},
                },
                "request_preview": json.dumps(row.request, ensure_ascii=False)[:PREVIEW_CHARACTERS],
                "response_preview": json.dumps(row.response, ensure_ascii=False)[:PREVIEW_CHARACTERS],
                "request_time": at,
                "execution_duration": "0s",
                "state": "OK",
                "trace_metadata": {SOURCE_RUN: run.run_id, SCHEMA: "3"},
                "tags": {TRACE_NAME: row.kind},
                "assessments": [_assessment(trace_id, at, *figure) for figure in row.figures.items()],
            }
        )


def find_evaluation(server: Server, experiment_id: str, digest: str) -> Run | None:
    """The finished run of an evaluation with these contents, whoever recorded it."""
    found = server.find_runs([experiment_id], OUTPUT, digest)
    return next((run for run in found if run.status == "FINISHED" and run.tags.get("ava.step") == "evaluate"), None)


def record_evaluation(
    server: Server,
    experiment_id: str,
    *,
    name: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, str],
    figures: Iterable[Point],
    corpus: Corpus | None,
    rows: Iterable[Row],
) -> Run:
    """A finished run of one evaluation, outside of pipelines.

    Args:
        server: the tracking server.
        experiment_id: where it goes.
        name: of the run.
        tags: with `OUTPUT`, by which `find_evaluation` finds it.
        parameters: of the evaluation.
        figures: what was measured on the whole text.
        corpus: the text, where it is known.
        rows: what was measured on parts of it.
    """
    run = server.create_run(experiment_id, name, {**TYPE, OWNED: "true", "ava.step": "evaluate"})
    server.log(run, parameters=parameters)
    if corpus is not None:
        server.log_corpus(run, corpus, TEST_CONTEXT)
    log_rows(server, run, rows)
    server.log(run, figures, tags)
    server.set_status(run.run_id, "FINISHED")
    return run


def _assessment(trace_id: str, at: str, name: str, value: float) -> dict[str, object]:
    return {
        "assessment_name": name,
        "trace_id": trace_id,
        "source": {"source_type": "CODE", "source_id": "ava evaluate"},
        "create_time": at,
        "last_update_time": at,
        "feedback": {"value": value},
        "valid": True,
    }
