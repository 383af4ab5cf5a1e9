"""The few requests of MLflow's REST API that record a step: importing MLflow for them takes longer than many a step.

Addresses, credentials and TLS settings are MLflow's own variables, so one environment serves this client and MLflow's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.errors import AvaError
from ava_core.tracking.address import RUN_ID
from ava_core.tracking.faults import DeletedExperimentError
from ava_core.tracking.records import DATASET_CONTEXT, PARAMETERS_PER_BATCH, Corpus, Point, batches

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 2.0
CREDENTIALS_FILE = "~/.mlflow/credentials"
OTHERS_AUTHENTICATE = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
"""Set where a plugin of MLflow's authenticates the requests; it is then used, which imports MLflow."""
CHECKED = "ava.checked"
"""A tag that is set to find out whether we may write."""
MISSING, PRESENT = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"


class RefusedError(Exception):
    """The server's answer is no success.

    Attributes:
        code: MLflow's error code, such as RESOURCE_DOES_NOT_EXIST; empty if it isn't MLflow that answers.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"error code {status}: {message}")
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the server describes it; `started` in milliseconds since 1970."""

    run_id: str
    experiment_id: str
    status: str
    started: int
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Run:
        """Read the `run` of an answer."""
        info, data = answer["info"], answer.get("data", {})
        return cls(
            run_id=info["run_id"],
            experiment_id=info["experiment_id"],
            status=info["status"],
            started=int(info["start_time"]),
            tags={tag["key"]: tag["value"] for tag in data.get("tags", ())},
            parameters={parameter["key"]: parameter["value"] for parameter in data.get("params", ())},
        )


class Server:
    """A tracking server's REST API.

    Every method raises what a failed request raises: `RefusedError`, an exception of `requests`, or a ValueError or
    KeyError where no MLflow answers.

    Args:
        uri: http(s) address.
        environment: MLflow's variables.
        seconds: time limit for an answer, counted from the one before; once it has passed, further requests fail.
    """

    def __init__(self, uri: str, environment: Mapping[str, str], seconds: float) -> None:
        self._uri = uri
        self._root = uri.rstrip("/")
        self._environment = environment
        self._session = _session(uri, environment)
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self.dated = ""
        """Date header of the last answer."""

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, made if there is none.

        Raises:
            DeletedExperimentError: it is deleted.
        """
        if found := self.find_experiment(name):
            return found
        try:
            return str(self._send("POST", "experiments/create", {"name": name})["experiment_id"])
        except RefusedError as error:
            if error.code != PRESENT:  # another step made it meanwhile
                raise
        return str(self.find_experiment(name))

    def find_experiment(self, name: str) -> str | None:
        """The experiment of that name; None if there is none.

        Raises:
            DeletedExperimentError: it is deleted.
        """
        try:
            found = self._send("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        except RefusedError as error:
            if error.code != MISSING:
                raise
            return None
        if found["lifecycle_stage"] == "deleted":
            raise DeletedExperimentError(self._uri, name, str(found["experiment_id"]))
        return str(found["experiment_id"])

    def version(self) -> str:
        """The server's version of MLflow; what else answers there may give anything."""
        return self._request("GET", f"{self._root}/version", {}).text.strip()[:40]

    def require_writable(self, experiment: str, model: str) -> None:
        """Test write permission: make the experiment if there is none, and set a tag on it and on the registered model.

        Raises:
            DeletedExperimentError: the experiment is deleted.
        """
        tag = {"key": CHECKED, "value": "true"}
        experiment_id = self.experiment_id(experiment)
        self._send("POST", "experiments/set-experiment-tag", {"experiment_id": experiment_id, **tag})
        try:
            self._send("GET", "registered-models/get", {"name": model})
        except RefusedError as error:
            if error.code != MISSING:
                raise
            return
        self._send("POST", "registered-models/set-tag", {"name": model, **tag})

    def experiment_ids(self) -> list[str]:
        """All active experiments, the latest thousand."""
        answer = self._send("POST", "experiments/search", {"max_results": 1000})
        return [str(experiment["experiment_id"]) for experiment in answer.get("experiments", ())]

    def active_run(self, run_id: str) -> Run:
        """The run with this id.

        Raises:
            AvaError: there is none, or it is deleted.
        """
        try:
            answer = self._send("GET", "runs/get", {"run_id": run_id})["run"]
        except RefusedError as error:
            if error.code != MISSING:
                raise
            raise AvaError(f"{RUN_ID} = {run_id}: the server has no such run") from error
        if answer["info"]["lifecycle_stage"] != "active":
            raise AvaError(f"{RUN_ID} = {run_id}: that run is deleted")
        return Run.parse(answer)

    def find_runs(self, experiment_ids: Iterable[str], tag: str, value: str) -> list[Run]:
        """The active runs with this tag, the oldest first; `value` has no quotes in it."""
        wanted = {"experiment_ids": list(experiment_ids), "filter": f"tags.`{tag}` = '{value}'", "max_results": 1000}
        found = map(Run.parse, self._send("POST", "runs/search", wanted).get("runs", ()))
        return sorted(found, key=lambda run: (run.started, run.run_id))

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
        """A new run; it has its tags from the first moment on."""
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": _now(), "tags": _pairs(tags)}
        return Run.parse(self._send("POST", "runs/create", body)["run"])

    def delete_run(self, run_id: str) -> None:
        """Delete a run; MLflow keeps it where it can be restored from."""
        self._send("POST", "runs/delete", {"run_id": run_id})

    def set_status(self, run_id: str, status: str) -> None:
        """Set RUNNING, or end the run with FINISHED, FAILED or KILLED."""
        ended = {} if status == "RUNNING" else {"end_time": _now()}
        self._send("POST", "runs/update", {"run_id": run_id, "status": status, **ended})

    def log(
        self,
        run: Run,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Log figures, set tags, and log the parameters that the run doesn't have: MLflow refuses to change one."""
        new = {name: value for name, value in (parameters or {}).items() if name not in run.parameters}
        for batch in batches(_pairs(new), PARAMETERS_PER_BATCH):
            self._send("POST", "runs/log-batch", {"run_id": run.run_id, "params": batch})
        now = _now()
        metrics = [{"key": p.name, "value": p.value, "step": p.step, "timestamp": now} for p in points]
        if metrics or tags:
            # In one request: the tags tell a second call what is logged already.
            body = {"run_id": run.run_id, "metrics": metrics, "tags": _pairs(tags or {})}
            self._send("POST", "runs/log-batch", body)

    def log_corpus(self, run: Run, corpus: Corpus, context: Mapping[str, str] = DATASET_CONTEXT) -> None:
        """Name the data that a run reads or makes, as its dataset input; the same one twice is one."""
        entry = {"dataset": corpus.as_dataset(), "tags": [context]}
        self._send("POST", "runs/log-inputs", {"run_id": run.run_id, "datasets": [entry]})

    def start_trace(self, info: Mapping[str, Any]) -> None:
        """Make a trace, of the fields that MLflow's TraceInfo has as JSON."""
        self._send("POST", "traces", {"trace": {"trace_info": info}}, api="3.0")

    def _send(self, method: str, path: str, values: Mapping[str, Any], api: str = "2.0") -> dict[str, Any]:
        return dict(self._request(method, f"{self._root}/api/{api}/mlflow/{path}", values).json())

    def _request(self, method: str, address: str, values: Mapping[str, Any]) -> requests.Response:
        left = max(0.05, self._deadline - time.monotonic())
        given: dict[str, Any] = {"params": values} if method == "GET" else {"json": values}
        answer = self._session.request(
            method,
            address,
            **given,
            timeout=(min(CONNECT_SECONDS, left), left),
            # With every request: from the session, requests would let REQUESTS_CA_BUNDLE come before it.
            verify=_verification(self._environment),
        )
        self._deadline = time.monotonic() + self._seconds
        self.dated = answer.headers.get("Date", "")
        if answer.status_code != 200:
            raise _refused(answer)
        return answer


def _session(uri: str, environment: Mapping[str, str]) -> requests.Session:
    import requests

    session = requests.Session()
    session.cert = environment.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
    if workspace := environment.get("MLFLOW_WORKSPACE"):
        session.headers["X-MLFLOW-WORKSPACE"] = workspace
    user, password = environment.get("MLFLOW_TRACKING_USERNAME"), environment.get("MLFLOW_TRACKING_PASSWORD")
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    if any(environment.get(name) for name in OTHERS_AUTHENTICATE) or (
        not (user or token) and Path(CREDENTIALS_FILE).expanduser().exists()
    ):
        session.auth = _authentication_of_mlflow(uri)
    elif user and password:
        session.auth = (user, password)
    elif token:
        session.auth = _Bearer(token)
    return session


class _Bearer:
    """Not a header of the session: requests would let an entry in ~/.netrc replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _authentication_of_mlflow(uri: str) -> Any:
    """What MLflow's client would authenticate with: a plugin, the signature of AWS, or its credentials file."""
    from mlflow.utils.credentials import get_default_host_creds

    credentials = get_default_host_creds(uri)
    if credentials.aws_sigv4:
        from requests_auth_aws_sigv4 import AWSSigV4

        return AWSSigV4("execute-api")
    if credentials.auth:
        from mlflow.tracking.request_auth.registry import fetch_auth

        return fetch_auth(credentials.auth)
    return (credentials.username, credentials.password)


def _verification(environment: Mapping[str, str]) -> bool | str | None:
    """What `requests` takes as `verify`; None leaves it to its own variables."""
    if environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None


def _refused(answer: requests.Response) -> RefusedError:
    try:
        body = answer.json()
        return RefusedError(answer.status_code, str(body["error_code"]), str(body.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return RefusedError(answer.status_code, "", answer.text[:200])


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": value} for name, value in values.items()]


def _now() -> int:
    return int(time.time() * 1000)
