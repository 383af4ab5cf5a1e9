"""Submit the pipeline to a Kubeflow Pipelines server, through the KFP client.

Usage: python -m pipelines.submit --host http://HOST:PORT --data-uri s3://BUCKET/raw [--params params.yaml] [--wait]

The version in Kubeflow is named after the commit and the IR, the run after the commit and the configuration, so that
submitting the same thing twice makes a second run and not a second version.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ava_core.errors import AvaError, ConfigError
from components.image import IMAGE
from pipelines import command_line
from pipelines.ava_pipeline import NAME
from pipelines.compile import compile_pipeline

if TYPE_CHECKING:
    from kfp import Client

PROBE_SECONDS = 10
POLL_SECONDS = 10.0
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
NAME_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run, and under which names.

    Attributes:
        ir: the compiled pipeline.
        arguments: the pipeline's parameters.
        version: name of the pipeline version.
        run: name of the run.
        experiment: name of the experiment.
        namespace: Kubernetes namespace of a multi-user server; None otherwise.
    """

    ir: str
    arguments: dict[str, str]
    version: str
    run: str
    experiment: str
    namespace: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and submit; 1 if --wait saw the run fail."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description="Submit the pipeline to Kubeflow.")
    command_line.add_config_flags(parser)
    parser.add_argument("--host", default="", help="address of the Kubeflow Pipelines server")
    parser.add_argument("--data-uri", default="", help="the corpus where the cluster reads it, such as s3://bucket/raw")
    parser.add_argument("--tracking-uri", default="", help="MLflow server; default: as the cluster's environment says")
    parser.add_argument("--image", default=IMAGE, help="image of every component (default: %(default)s)")
    parser.add_argument("--experiment", default=NAME, help="experiment of the run (default: %(default)s)")
    parser.add_argument("--namespace", help="Kubernetes namespace, on a multi-user server")
    parser.add_argument("--token-file", type=Path, help="file with a bearer token")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the run")
    flags = parser.parse_args(arguments)
    _check_addresses(flags)
    submission = _submission(flags)
    host = flags.host.rstrip("/")
    token = flags.token_file.read_text().strip() if flags.token_file else None
    with _client_errors(host):
        client = connect(host, token, submission.namespace)
        run_id = submit(client, submission)
        print(f"run {run_id}  {submission.run}")
        print(f"page {host}/#/runs/details/{run_id}")
        if not flags.wait:
            return 0
        state = wait(client, run_id)
    print(f"run {run_id} {state}")
    return 0 if state == "SUCCEEDED" else 1


def connect(host: str, token: str | None = None, namespace: str | None = None) -> Client:
    """A client of a server that was seen to answer.

    Asked first because the client itself would try five times, five seconds apart, with a traceback each time.
    """
    import kfp_server_api
    from kfp import Client

    configuration = kfp_server_api.Configuration()
    configuration.host = host
    if token:
        configuration.api_key["authorization"] = token
        configuration.api_key_prefix["authorization"] = "Bearer"
    with kfp_server_api.ApiClient(configuration) as probe:
        kfp_server_api.HealthzServiceApi(probe).healthz_service_get_healthz(_request_timeout=PROBE_SECONDS)
    with _quiet():
        return Client(host=host, existing_token=token, namespace=namespace or "kubeflow")


def submit(client: Client, submission: Submission) -> str:
    """Upload what the server lacks, start a run, and give its id."""
    with _quiet():
        version = _version(client, submission)
        experiment = client.create_experiment(submission.experiment, namespace=submission.namespace)
        run = client.run_pipeline(
            experiment_id=experiment.experiment_id,
            job_name=submission.run,
            params=submission.arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.pipeline_version_id,
        )
    return run.run_id


def wait(client: Client, run_id: str) -> str:
    """The state in which a run ends. The client's own wait doesn't know CANCELED and would never return."""
    while True:
        state = client.get_run(run_id).state
        if state in ENDED:
            return state
        time.sleep(POLL_SECONDS)


def _version(client: Client, submission: Submission) -> Any:
    """The pipeline version of this IR, uploaded if the server doesn't have it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "pipeline.yaml")
        package.write_text(submission.ir, encoding="utf-8")
        pipeline_id = client.get_pipeline_id(NAME)
        if pipeline_id is None:
            pipeline_id = client.upload_pipeline(str(package), NAME, namespace=submission.namespace).pipeline_id
        wanted = json.dumps(
            {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": submission.version}]}
        )
        found = client.list_pipeline_versions(pipeline_id, filter=wanted).pipeline_versions
        if found:
            return found[0]
        return client.upload_pipeline_version(str(package), submission.version, pipeline_id=pipeline_id)


def _submission(flags: argparse.Namespace) -> Submission:
    resolved = command_line.resolve_flags(flags)
    if resolved.preset_reason:
        raise ConfigError("preset: auto: would be chosen by this machine's hardware, not the cluster's: name a preset")
    commit = command_line.head_commit()
    ir = compile_pipeline(resolved.config.quantize.schemes, flags.image)
    short = commit[:NAME_CHARACTERS] or "uncommitted"
    return Submission(
        ir=ir,
        arguments={
            "params_yaml": command_line.params_yaml(resolved.config),
            "data_uri": flags.data_uri,
            "tracking_uri": flags.tracking_uri,
            "git_commit": commit,
        },
        version=f"{short}-{hashlib.sha256(ir.encode()).hexdigest()[:NAME_CHARACTERS]}",
        run=f"{NAME} {short} {command_line.digest(resolved.config)}",
        experiment=flags.experiment,
        namespace=flags.namespace,
    )


def _check_addresses(flags: argparse.Namespace) -> None:
    faults = []
    if not flags.host:
        faults.append(
            "--host: missing: give the address of the Kubeflow Pipelines server, such as http://localhost:8080"
        )
    elif urlsplit(flags.host).scheme not in ("http", "https") or not urlsplit(flags.host).hostname:
        faults.append(f"--host {flags.host}: must be http://HOST[:PORT] or https://HOST[:PORT]")
    if not flags.data_uri:
        faults.append("--data-uri: missing: give the address of the corpus in an object store, such as s3://bucket/raw")
    elif not urlsplit(flags.data_uri).scheme:
        faults.append(
            f"--data-uri {flags.data_uri}: must be an address that the cluster can read, such as s3://bucket/raw"
        )
    if faults:
        raise ConfigError(*faults)


@contextlib.contextmanager
def _client_errors(host: str) -> Iterator[None]:
    """Turn the client's exceptions in the block into one line."""
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        if error.status in (401, 403):
            raise AvaError(
                f"{host}: refuses us ({error.status}): give a valid token with --token-file, "
                "and on a multi-user server --namespace"
            ) from error
        if error.status == 404:
            raise AvaError(f"{host}: has no Kubeflow Pipelines API (404): check --host and its path") from error
        raise AvaError(f"{host}: {error.status} {error.reason}: {_detail(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        raise AvaError(
            f"{host}: no Kubeflow Pipelines server answers ({type(cause).__name__}): check --host, or forward its port"
        ) from error


def _detail(error: Any) -> str:
    """What the server says, as one line."""
    try:
        text = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        text = str(error.body or "it says nothing more")
    return " ".join(text.split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the client prints about each thing it makes, and its warning about old servers."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    command_line.run("pipelines.submit", main)
