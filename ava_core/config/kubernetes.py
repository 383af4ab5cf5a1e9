"""The section `kubernetes`: how the pipeline's pods run on a cluster.

Nothing in it changes a result, so no step's key holds it. What is left out is not set: the cluster's own defaults hold.
Names, units and meanings are those of Kubernetes (https://kubernetes.io/docs/reference/kubernetes-api/).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from ava_core.config.section import NonNegative, ObjectName, Positive, Section, Text
from ava_core.config.train_job import TrainJobConfig
from ava_core.steps.table import STEPS


def _number_as_text(value: Any) -> Any:
    """YAML reads `cpu_limit: 4` as a number; Kubernetes means the text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cpu = Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^([0-9]{0,18}\.)?[0-9]{1,18}m?$")]
"""CPUs, or thousandths of one with the unit m."""
Bytes = Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^[0-9]{1,18}([KMGTPE]i?)?$")]
"""Bytes, with a decimal (G) or binary (Gi) unit."""
Folder = Annotated[str, Field(pattern=r"^/[^:]+$")]
"""Absolute path inside the container."""

_UNITS = {unit: 1000**power for power, unit in enumerate("KMGTPE", start=1)} | {
    f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", start=1)
}


class TolerationConfig(Section):
    """A toleration: the pod may run on nodes with this taint."""

    key: Text | None = None
    """Key of the taint; null, with the operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal: the taint has this key and value; Exists: this key, whatever the value."""
    value: Text | None = None
    """Value of the taint, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; null: any."""
    seconds: NonNegative | None = None
    """How long a running pod stays on a node that gets the taint (tolerationSeconds), for NoExecute; null: for good."""

    @model_validator(mode="after")
    def _means_something(self) -> TolerationConfig:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(f"value = {self.value}: must be left out with the operator Exists")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("has no key: give one, or the operator Exists for every taint")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError(f"seconds = {self.seconds}: only the effect NoExecute has a duration")
        return self


class PodConfig(Section):
    """What the pods of one step ask for. What is null or empty is as in `kubernetes.steps.every`."""

    cpu_request: Cpu | None = None
    """CPUs that the scheduler reserves."""
    cpu_limit: Cpu | None = None
    """Most CPUs. With `threads: 0` a step computes with as many threads as it has CPUs; their number is in its key."""
    memory_request: Bytes | None = None
    """Memory that the scheduler reserves."""
    memory_limit: Bytes | None = None
    """Most memory; a container that takes more is killed (OOMKilled)."""
    gpus: NonNegative | None = None
    """Number of accelerators; 0: none, whatever `every` says."""
    gpu_type: Text | None = None
    """Resource that is counted; null: nvidia.com/gpu. A model of GPU is chosen with node_selector."""
    node_selector: dict[str, str] = {}
    """Labels that the node must have."""
    tolerations: list[TolerationConfig] = []
    """Taints of nodes on which the pod may run."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm, which counts as memory; null: the container runtime's, often 64 MiB. The ranks of a
    pod exchange gradients through it."""
    timeout_seconds: Positive | None = None
    """The pod is killed after so long (activeDeadlineSeconds); counted anew for each retry."""
    retries: NonNegative | None = None
    """How often a failed pod is started again; null: as `kubernetes.retry.count`."""

    def over(self, every: PodConfig) -> PodConfig:
        """These values where they are set, else those of `every`."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return every.model_copy(update={name: value for name, value in given.items() if value not in (None, {}, [])})

    @property
    def fault(self) -> str:
        """A value that Kubernetes would refuse because of another, as `field = value: ...`; empty if there is none."""
        for kind in ("cpu", "memory"):
            request, limit = getattr(self, f"{kind}_request"), getattr(self, f"{kind}_limit")
            if request and limit and _amount(request) > _amount(limit):
                return f"{kind}_request = {request}: must be <= {kind}_limit = {limit}"
        if self.shared_memory and self.memory_limit and _amount(self.shared_memory) > _amount(self.memory_limit):
            return f"shared_memory = {self.shared_memory}: must be <= memory_limit = {self.memory_limit}"
        return ""


def _attribute(step: str) -> str:
    """Where a step's pods are in `StepsConfig`: `register` is a method of every pydantic model."""
    return f"{step}_" if hasattr(Section, step) else step


_FIELDS: dict[str, Any] = {
    "every": (PodConfig, Field(default=PodConfig(), description="What the pods of every step ask for.")),
    **{
        _attribute(step): (PodConfig, Field(default=PodConfig(), alias=step, description=f"Of {step}, over `every`."))
        for step in STEPS
    },
}
_PodsOfSteps = create_model("_PodsOfSteps", __base__=Section, **_FIELDS)


class StepsConfig(_PodsOfSteps):  # type: ignore[valid-type, misc]
    """The pods of each step; those of preprocess are also those of its parts.

    `every` holds for all steps, and for the exit handler but its GPUs.
    """

    @model_validator(mode="after")
    def _keeps_its_limits(self) -> StepsConfig:
        for name, field in type(self).model_fields.items():
            if fault := getattr(self, name).over(self.every).fault:
                raise ValueError(f"{field.alias or name}.{fault}")
        return self

    def pod(self, step: str) -> PodConfig:
        """What the pods of a step ask for, `every` included; of anything that is no step, `every` without GPUs."""
        if step not in STEPS:
            return self.every.model_copy(update={"gpus": 0})
        return getattr(self, _attribute(step)).over(self.every)


class RetryConfig(Section):
    """Failed pods are started again; every step goes on from its last durable point, if there is a work volume."""

    count: NonNegative = 2
    """How often; the exit handler is never repeated."""
    seconds: Positive = 30
    """Pause before the first retry, the base of an exponential backoff."""
    factor: Annotated[float, Field(ge=1.0, le=1e6)] = 2.0
    """Factor of the backoff: each further pause is so many times as long."""
    window_seconds: Positive = 604_800
    """No retry begins, and none goes on, so long after the first start. It includes the time of the work itself: with
    less than a step takes, the step is never retried."""


class WorkConfig(Section):
    """The volume behind AVA_WORK: shards, checkpoints and finished outputs outlive a pod, and a run."""

    claim: ObjectName | None = None
    """PersistentVolumeClaim that exists; ReadWriteMany where steps shall run on several nodes. Null: no volume, and a
    killed step begins anew."""
    mount_path: Folder = "/ava/work"
    """Where the containers see it."""
    sub_path: str = ""
    """Folder of the volume; empty: all of it."""


class SecretConfig(Section):
    """A Secret whose entries become environment variables of every step. Their values never pass through Ava."""

    name: ObjectName
    """Of the Secret, in the namespace of the pods."""
    variables: Annotated[dict[str, Text], Field(min_length=1)]
    """Variable -> key of the Secret: MLFLOW_TRACKING_USERNAME, AWS_SECRET_ACCESS_KEY, ..."""

    @model_validator(mode="after")
    def _can_be_set(self) -> SecretConfig:
        for name in self.variables:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"variables: {name} is no name of an environment variable: use letters, digits and _")
            if name.startswith("AVA_"):
                raise ValueError(
                    f"variables: {name}: the pipeline sets the AVA_ variables itself: give MLFLOW_TRACKING_URI for an"
                    " address, parameters for all else"
                )
        return self


class KubernetesConfig(Section):
    """How the pipeline's pods run on a cluster.

    `python -m pipelines.local` takes the parts and the time limits of it, and leaves the rest aside.
    """

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes fetch the image; null: Always for the tag latest, else IfNotPresent."""
    image_pull_secrets: list[ObjectName] = []
    """Secrets with credentials of the image's registry."""
    run_as_user: NonNegative | None = None
    """User id of the steps; null: the image's."""
    run_as_group: NonNegative | None = None
    """Group id of the steps; null: the image's."""
    run_as_non_root: bool | None = None
    """Refuse to start as root."""
    labels: dict[str, str] = {}
    """Labels of every pod."""
    annotations: dict[str, str] = {}
    """Annotations of every pod."""
    secrets: list[SecretConfig] = []
    """Credentials of MLflow and of object stores."""
    work: WorkConfig = WorkConfig()
    retry: RetryConfig = RetryConfig()
    preprocess_parts: Annotated[int, Field(gt=0, le=4096)] = 1
    """Pods that clean the corpus at the same time, by files of about equal bytes; 1: preprocess does it by itself. The
    shards are the same. The parts meet on the work volume, and must have as many CPUs as preprocess."""
    steps: StepsConfig = StepsConfig()
    train_job: TrainJobConfig = TrainJobConfig()


def _amount(quantity: str) -> float:
    """The number that a quantity stands for."""
    if quantity.endswith("m"):
        return float(quantity[:-1]) / 1000
    digits = quantity.rstrip("KMGTPEi")
    return float(digits) * _UNITS.get(quantity[len(digits) :], 1)
