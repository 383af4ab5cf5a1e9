"""What a Kubeflow Pipelines server keeps, and what it makes of each call; a run goes one step on each time it is read.

Names of pipelines, versions and experiments are unique (409), a run needs a version, an experiment and the parameters
that its pipeline declares (404, 400), as on a real server.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any

import yaml

from tests.pipelines.kfp_api import Call

START = datetime(2026, 1, 1, tzinfo=UTC)
PAGE_SIZE = 10
ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


class Refused(Exception):
    """An answer that isn't 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class State:
    """Pipelines, versions, experiments, runs and recurring runs, each as the API gives them.

    Attributes:
        multi_user: whether a namespace is needed.
        fails_at: name of the task at which runs fail, None if they succeed.
        plugins_output: what each new run says of the server's plugins.
    """

    def __init__(self) -> None:
        self.multi_user = False
        self.fails_at: str | None = None
        self.plugins_output: dict[str, Any] = {}
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.recurring_runs: list[dict[str, Any]] = []
        self._progress: dict[str, int] = {}
        self._seconds = 0

    def carry_out(self, call: Call) -> Any:
        """The reply to a call.

        Raises:
            Refused: the reply isn't 200.
        """
        act = self._actions().get(call.operation)
        if act is None:
            raise Refused(501, f"{call.operation}: not in the tests' server")
        return act(call)

    def _actions(self) -> dict[str, Callable[[Call], Any]]:
        return {
            "HealthzService_GetHealthz": lambda call: {"multi_user": self.multi_user},
            "PipelineService_ListPipelines": lambda call: self._list(call, self.pipelines, "pipelines"),
            "PipelineService_CreatePipeline": lambda call: self._create_pipeline(**call.body),
            "PipelineService_ListPipelineVersions": self._list_versions,
            "UploadPipeline": self._upload_pipeline,
            "UploadPipelineVersion": self._upload_version,
            "ExperimentService_ListExperiments": lambda call: self._list(call, self.experiments, "experiments"),
            "ExperimentService_CreateExperiment": self._create_experiment,
            "RunService_ListRuns": self._list_runs,
            "RunService_CreateRun": self._create_run,
            "RunService_GetRun": self._get_run,
            "RunService_RetryRun": self._retry_run,
            "RunService_TerminateRun": self._terminate_run,
            "RecurringRunService_ListRecurringRuns": lambda call: self._list(
                call, self.recurring_runs, "recurringRuns"
            ),
            "RecurringRunService_CreateRecurringRun": self._create_recurring_run,
            "RecurringRunService_EnableRecurringRun": lambda call: self._set_mode(call, "ENABLE"),
            "RecurringRunService_DisableRecurringRun": lambda call: self._set_mode(call, "DISABLE"),
            "RecurringRunService_DeleteRecurringRun": self._delete_recurring_run,
        }

    def _create_pipeline(self, name: str, **fields: Any) -> dict[str, Any]:
        if any(pipeline["name"] == name for pipeline in self.pipelines):
            raise Refused(409, f"the pipeline {name} already exists")
        pipeline = {"display_name": name, **fields, "name": name, "pipeline_id": _id(), "created_at": self._now()}
        self.pipelines.append(pipeline)
        return pipeline

    def _upload_pipeline(self, call: Call) -> dict[str, Any]:
        pipeline = self._create_pipeline(**call.query)
        self._add_version(pipeline["pipeline_id"], call.query["name"], call)
        return pipeline

    def _upload_version(self, call: Call) -> dict[str, Any]:
        pipeline = _one(self.pipelines, "pipeline_id", call.query["pipelineid"])
        return self._add_version(pipeline["pipeline_id"], call.query["name"], call)

    def _add_version(self, pipeline_id: str, name: str, call: Call) -> dict[str, Any]:
        siblings = [version for version in self.versions if version["pipeline_id"] == pipeline_id]
        if any(version["name"] == name for version in siblings):
            raise Refused(409, f"the version {name} already exists")
        assert call.file is not None
        spec, *platform = list(yaml.safe_load_all(call.file))
        version = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": _id(),
            "name": name,
            "display_name": call.query.get("display_name", name),
            "created_at": self._now(),
            "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec,
        }
        if "description" in call.query:
            version["description"] = call.query["description"]
        self.versions.append(version)
        return version

    def _list_versions(self, call: Call) -> dict[str, Any]:
        items = [version for version in self.versions if version["pipeline_id"] == call.path["pipeline_id"]]
        return self._list(call, items, "pipeline_versions")

    def _create_experiment(self, call: Call) -> dict[str, Any]:
        if any(experiment["display_name"] == call.body["display_name"] for experiment in self.experiments):
            raise Refused(409, f"the experiment {call.body['display_name']} already exists")
        experiment = {
            **call.body,
            "experiment_id": _id(),
            "created_at": self._now(),
            "storage_state": "AVAILABLE",
        }
        self.experiments.append(experiment)
        return experiment

    def _list_runs(self, call: Call) -> dict[str, Any]:
        return self._list(call, [run for run in self.runs if _of_experiment(call, run)], "runs")

    def _create_run(self, call: Call) -> dict[str, Any]:
        self._check_runnable(call.body)
        run = {
            **call.body,
            "run_id": _id(),
            "created_at": self._now(),
            "storage_state": "AVAILABLE",
            "state": "PENDING",
        }
        if self.plugins_output:
            run["plugins_output"] = self.plugins_output
        self.runs.append(run)
        self._progress[run["run_id"]] = 0
        return run

    def _check_runnable(self, body: dict[str, Any]) -> None:
        _one(self.experiments, "experiment_id", body["experiment_id"])
        declared = self._spec(body)["root"].get("inputDefinitions", {}).get("parameters", {})
        given = body["runtime_config"].get("parameters", {})
        for name in given:
            if name not in declared:
                raise Refused(400, f"the pipeline has no parameter {name}")
        for name, parameter in declared.items():
            if name not in given and "defaultValue" not in parameter and not parameter.get("isOptional"):
                raise Refused(400, f"the parameter {name} is missing")

    def _spec(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = body.get("pipeline_spec")
        if spec is None:
            reference = body["pipeline_version_reference"]["pipeline_version_id"]
            spec = _one(self.versions, "pipeline_version_id", reference)["pipeline_spec"]
        return spec.get("pipeline_spec", spec)

    def _get_run(self, call: Call) -> dict[str, Any]:
        run = _one(self.runs, "run_id", call.path["run_id"])
        if run["state"] in ("PENDING", "RUNNING"):
            self._advance(run)
        elif run["state"] == "CANCELING":
            run["state"] = "CANCELED"
        return run

    def _advance(self, run: dict[str, Any]) -> None:
        """The next of the pipeline's tasks ends, and the one after it starts."""
        names = leaf_tasks(self._spec(run))
        done = self._progress[run["run_id"]]
        self._progress[run["run_id"]] += 1
        run["state"] = "RUNNING"
        details = [_pod(run, name, "RUNNING") for name in ("root", "root-driver")]
        for index, name in enumerate(names[: done + 1]):
            state = "SUCCEEDED" if index < done else "RUNNING"
            if state == "SUCCEEDED" and name == self.fails_at:
                state = "FAILED"
            details += [_pod(run, f"{name}-driver", "SUCCEEDED"), _task(run, index, name, state)]
            if state == "FAILED":
                run["state"] = "FAILED"
                break
        else:
            if done >= len(names):
                run["state"] = "SUCCEEDED"
        run["run_details"] = {"task_details": details}

    def _retry_run(self, call: Call) -> dict[str, Any]:
        run = _one(self.runs, "run_id", call.path["run_id"])
        if run["state"] not in ("FAILED", "CANCELED"):
            raise Refused(400, f"the run is {run['state']}: it must have failed to be retried")
        self.fails_at = None
        self._progress[run["run_id"]] -= 1
        run["state"] = "PENDING"
        return {}

    def _terminate_run(self, call: Call) -> dict[str, Any]:
        run = _one(self.runs, "run_id", call.path["run_id"])
        if run["state"] in ENDED:
            raise Refused(400, f"the run has ended: {run['state']}")
        run["state"] = "CANCELING"
        return {}

    def _create_recurring_run(self, call: Call) -> dict[str, Any]:
        self._check_runnable(call.body)
        if not 1 <= int(call.body["max_concurrency"]) <= 10:
            raise Refused(400, "max_concurrency must be 1 to 10")
        if len(call.body["trigger"]) != 1:
            raise Refused(400, "one trigger is needed")
        recurring = {
            **call.body,
            "recurring_run_id": _id(),
            "created_at": self._now(),
            "status": f"{call.body['mode']}D",
        }
        self.recurring_runs.append(recurring)
        return recurring

    def _set_mode(self, call: Call, mode: str) -> dict[str, Any]:
        recurring = _one(self.recurring_runs, "recurring_run_id", call.path["recurring_run_id"])
        recurring |= {"mode": mode, "status": f"{mode}D"}
        return {}

    def _delete_recurring_run(self, call: Call) -> dict[str, Any]:
        self.recurring_runs.remove(_one(self.recurring_runs, "recurring_run_id", call.path["recurring_run_id"]))
        return {}

    def _list(self, call: Call, items: list[dict[str, Any]], name: str) -> dict[str, Any]:
        if call.query.get("filter"):
            for predicate in call.query["filter"]["predicates"]:
                if predicate["operation"] != "EQUALS":
                    raise Refused(501, f"{predicate['operation']}: not in the tests' server")
                items = [item for item in items if item.get(predicate["key"]) == predicate["string_value"]]
        start = int(call.query.get("page_token") or 0)
        end = start + (call.query.get("page_size") or PAGE_SIZE)
        page: dict[str, Any] = {name: items[start:end], "total_size": len(items)} if items else {}
        if end < len(items):
            page["next_page_token"] = str(end)
        return page

    def _now(self) -> str:
        self._seconds += 1
        return _time(self._seconds)


def leaf_tasks(spec: dict[str, Any], component: dict[str, Any] | None = None) -> list[str]:
    """Names of the tasks that run a container, of a compiled pipeline, in an order in which they can run."""
    dag = (component or spec["root"])["dag"]["tasks"]
    order = TopologicalSorter({name: task.get("dependentTasks", []) for name, task in dag.items()}).static_order()
    names = []
    for name in order:
        inner = spec["components"][dag[name]["componentRef"]["name"]]
        names += leaf_tasks(spec, inner) if "dag" in inner else [name]
    return names


def _task(run: dict[str, Any], index: int, name: str, state: str) -> dict[str, Any]:
    detail = {
        "run_id": run["run_id"],
        "task_id": f"{run['run_id']}-{name}",
        "display_name": name,
        "state": state,
        "create_time": _time(60 * index),
        "start_time": _time(60 * index),
    }
    if state in ENDED:
        detail["end_time"] = _time(60 * index + 42)
    if state == "FAILED":
        detail["error"] = {"code": 2, "message": "exit code 1:\nout of memory"}
    return detail


def _pod(run: dict[str, Any], name: str, state: str) -> dict[str, Any]:
    return {"run_id": run["run_id"], "task_id": f"{run['run_id']}-{name}", "display_name": name, "state": state}


def _of_experiment(call: Call, item: dict[str, Any]) -> bool:
    return call.query.get("experiment_id") in (None, item["experiment_id"])


def _one(items: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    for item in items:
        if item[key] == value:
            return item
    raise Refused(404, f"{key} {value} not found")


def _id() -> str:
    return str(uuid.uuid4())


def _time(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
