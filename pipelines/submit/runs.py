"""Runs: started exactly once, tried again, terminated."""

from __future__ import annotations

from typing import Any

import kfp_server_api
from kfp import Client

from ava_core.errors import AvaError
from pipelines.submit.exactly_once import create_once
from pipelines.submit.lookup import equals, first
from pipelines.submit.submission import Submission
from pipelines.submit.versions import ensure_experiment, ensure_version

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
UNFINISHED = ("FAILED", "CANCELED")
"""States from which the server goes on with a run."""


def prepare(client: Client, submission: Submission) -> tuple[Any, str]:
    """The reference to the pipeline version, and the experiment's id, of a submission; made if they aren't there."""
    version = ensure_version(
        client,
        submission.ir,
        submission.version,
        description=f"commit {submission.commit}" if submission.commit else "",
        namespace=submission.namespace,
    )
    experiment = ensure_experiment(client, submission.experiment, submission.namespace)
    reference = kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
    )
    return reference, experiment.experiment_id


def start(client: Client, submission: Submission, reference: Any, experiment_id: str) -> Any:
    """Start a run of what `prepare` gave, or give the one that this submit has already started.

    The run's description carries the submit's id, so that it is known again when the answer got lost. `kfp.Client`'s
    own `run_pipeline` knows neither a description nor `plugins_input`, so the body is built here.
    """
    marker = f"submit {submission.submit_id}"
    body = kfp_server_api.V2beta1Run(
        experiment_id=experiment_id,
        display_name=submission.name,
        description=marker,
        pipeline_version_reference=reference,
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=submission.arguments),
        plugins_input=submission.plugins or None,
    )

    def find() -> Any:
        return first(client.list_runs(experiment_id=experiment_id, filter=equals("description", marker)).runs)

    return find() or create_once(lambda: client.runs.run_service_create_run(body), find, named=False)


def retry(client: Client, run_id: str) -> None:
    """Have the server go on with a run that failed: its finished steps are kept.

    Raises:
        AvaError: the run hasn't failed.
    """
    state = client.get_run(run_id).state
    if state not in UNFINISHED:
        raise AvaError(f"--retry {run_id}: is {state}: only a run that FAILED or was CANCELED is tried again")

    def find() -> Any:
        run = client.get_run(run_id)
        return run if run.state not in UNFINISHED else None

    # Named: the server refuses to retry a run that isn't in one of these states.
    create_once(lambda: client.runs.run_service_retry_run(run_id), find, named=True)


def terminate(client: Client, run_id: str) -> str | None:
    """Have the server end a run; the state in which it had ended already, None if it hadn't."""
    state: str = client.get_run(run_id).state
    if state in ENDED:
        return state

    def find() -> Any:
        run = client.get_run(run_id)
        return run if run.state in ("CANCELING", "CANCELED") else None

    create_once(lambda: client.terminate_run(run_id), find, named=True)
    return None
