"""A sweep as an `Experiment` of Katib (kubeflow.org/v1beta1): Katib chooses, and each trial is a Job on the cluster.

Field by field as in Katib's API (pkg/apis/controller/experiments/v1beta1/experiment_types.go) and within what its
webhook accepts (pkg/webhook/v1beta1/experiment/validator). Trials share the work volume, so a Job whose pod is lost
goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ava_core.config import AvaConfig
from ava_core.config.kubernetes import PodConfig
from ava_core.config.yaml_text import read_yaml
from ava_core.errors import ConfigError
from ava_core.sweeping.checks import Base, Checked
from ava_core.sweeping.space import ParameterConfig

ALGORITHMS = {"grid": "grid", "random": "random", "tpe": "multivariate-tpe"}
"""Katib's own names; its `tpe` is hyperopt's, `multivariate-tpe` is Optuna's, as here."""
CONTAINER = "train"
MOUNT = "work"
# `ava train` ends with its figures in one line on standard output: `... validation_loss=2.1 ...`.
FILTER = r"([a-z0-9_]+)=([+-]?\d*(?:\.\d+)?(?:[Ee][+-]?\d+)?)"
GPU = "nvidia.com/gpu"


def experiment(
    name: str, base: Base, checked: Checked, *, image: str | None, shards: Path | None, max_failures: int
) -> str:
    """The manifest, as YAML for `kubectl create -f -`. The same space gives the same bytes.

    Args:
        name: of the sweep; Katib wants small letters, digits and `-`.
        base: the configuration; `kubernetes` says what pods ask for and which volume they share.
        checked: the space.
        image: of the trials, as `make images` pushes it.
        shards: folder of the shards as the pods see it.
        max_failures: Jobs that may fail.

    Raises:
        ConfigError: Katib lacks what the space asks for, or something is missing that a pod needs.
    """
    config = base.resolve().config
    _require_possible(name, config, checked, image, shards)
    space = checked.space
    objective = {"type": space.goals[0].goal, "objectiveMetricName": space.goals[0].name}
    spec: dict[str, Any] = {
        "objective": {
            **objective,
            # The last measurement is of the whole validation split, the ones before it of a part.
            "metricStrategies": [{"name": space.goals[0].name, "value": "latest"}],
        },
        "algorithm": _algorithm(checked),
        "parallelTrialCount": 1,
        "maxTrialCount": checked.trials,
        "maxFailedTrialCount": min(max_failures, checked.trials),
        "parameters": [_parameter(key, parameter, checked) for key, parameter in space.parameters.items()],
        "metricsCollectorSpec": {
            "collector": {"kind": "StdOut"},
            "source": {"filter": {"metricsFormat": [FILTER]}},
        },
        "trialTemplate": _template(base, config, checked, str(image), str(shards)),
    }
    if space.pruner and space.pruner.median:
        median = space.pruner.median
        settings = {"min_trials_required": median.startup_trials, "start_step": max(1, median.min_steps)}
        spec["earlyStopping"] = {"algorithmName": "medianstop", "algorithmSettings": _settings(settings)}
    manifest = {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "ava-moe"}},
        "spec": spec,
    }
    return yaml.safe_dump(manifest, sort_keys=False, width=120)


def _require_possible(name: str, config: AvaConfig, checked: Checked, image: str | None, shards: Path | None) -> None:
    space, faults = checked.space, []
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        faults.append(f"--name {name}: Katib's names are small letters, digits and `-`, at most 40")
    if len(space.goals) > 1:
        faults.append("objectives: Katib has one objective: give a metric")
    if space.pruner and space.pruner.asha:
        faults.append("pruner.asha: Katib has no ASHA: use pruner: {median: ...}, or run `ava sweep` itself")
    further = [metric.name for metric in checked.plan.metrics if metric.step != "train"]
    if further:
        faults.append(f"{further[0]}: a trial of Katib's only trains: take a figure of train")
    if checked.plan.preprocess:
        faults.append("parameters: a trial of Katib's only trains: leave out what changes the shards")
    if shards is None:
        faults.append("--shards: is missing: the shards' folder on the work volume, as pods see it")
    if config.kubernetes.work.claim is None:
        faults.append("kubernetes.work.claim: is missing: trials find the shards on that volume")
    if image is None:
        faults.append("--image: is missing: the image of the trials, as NAME@sha256:...")
    if faults:
        raise ConfigError(*faults)


def _algorithm(checked: Checked) -> dict[str, Any]:
    space = checked.space
    named: dict[str, Any] = {"algorithmName": ALGORITHMS[space.method]}
    if space.method != "grid":
        settings = {"random_state": space.seed}
        if space.method == "tpe":
            settings["n_startup_trials"] = space.startup_trials
        named["algorithmSettings"] = _settings(settings)
    return named


def _settings(values: dict[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def parameter_name(key: str) -> str:
    """What a key is called in Katib: without dots, which its placeholders don't have."""
    return key.replace(".", "-").replace("_", "-")


def _parameter(key: str, parameter: ParameterConfig, checked: Checked) -> dict[str, Any]:
    name, whole = parameter_name(key), checked.whole[key]
    if parameter.values is not None or checked.space.method == "grid":
        values = [_as_text(value) for value in parameter.grid(whole)]
        return {"name": name, "parameterType": "categorical", "feasibleSpace": {"list": values}}
    space = {"min": f"{parameter.min}", "max": f"{parameter.max}"}
    if parameter.step is not None:
        space["step"] = f"{parameter.step:g}"
    space["distribution"] = "logUniform" if parameter.scale == "log" else "uniform"
    return {"name": name, "parameterType": "int" if whole else "double", "feasibleSpace": space}


def _as_text(value: Any) -> str:
    """What `--set key=` takes: the plain word where YAML reads that as the value, JSON otherwise."""
    if isinstance(value, str) and value.isprintable() and read_yaml(value) == value and "#" not in value:
        return value
    return json.dumps(value)


def _template(base: Base, config: AvaConfig, checked: Checked, image: str, shards: str) -> dict[str, Any]:
    keys = list(checked.space.parameters)
    work = config.kubernetes.work
    sets = [f"{key}=${{trialParameters.{parameter_name(key)}}}" for key in keys]
    pod = config.kubernetes.steps.pod("train")
    container = {
        "name": CONTAINER,
        "image": image,
        "command": ["python", "-m", "ava_core.sweeping.katib_trial"],
        "args": [
            *("--params-yaml", _params_text(base)),
            *(word for given in sets for word in ("--set", given)),
            *("--shards", shards),
            *("--work", work.mount_path),
            *("--output", "/tmp/ava/model"),  # noqa: S108  in the container, and gone with it
        ],
        "volumeMounts": [
            {"name": MOUNT, "mountPath": work.mount_path, **({"subPath": work.sub_path} if work.sub_path else {})}
        ],
        **_resources(pod),
    }
    inside: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": MOUNT, "persistentVolumeClaim": {"claimName": work.claim}}],
    }
    if pod.node_selector:
        inside["nodeSelector"] = dict(pod.node_selector)
    if config.kubernetes.image_pull_secrets:
        inside["imagePullSecrets"] = [{"name": secret} for secret in config.kubernetes.image_pull_secrets]
    return {
        "primaryContainerName": CONTAINER,
        "trialParameters": [
            {"name": parameter_name(key), "description": key, "reference": parameter_name(key)} for key in keys
        ],
        "trialSpec": {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "spec": {"backoffLimit": config.kubernetes.retry.count, "template": {"spec": inside}},
        },
    }


def _params_text(base: Base) -> str:
    """The whole configuration: a pod has no params.yaml."""
    from ava_core.config import to_yaml

    return to_yaml(base.resolve().config.model_dump(mode="json", by_alias=True))


def _resources(pod: PodConfig) -> dict[str, Any]:
    limits = {"cpu": pod.cpu_limit, "memory": pod.memory_limit}
    if pod.gpus:
        limits[pod.gpu_type or GPU] = str(pod.gpus)
    requests = {"cpu": pod.cpu_request, "memory": pod.memory_request}
    found = {
        name: {key: value for key, value in values.items() if value}
        for name, values in (("limits", limits), ("requests", requests))
    }
    found = {name: values for name, values in found.items() if values}
    return {"resources": found} if found else {}
