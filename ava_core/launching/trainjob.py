"""What the TrainJob is: its name, its command, its environment, its resources.

Everything here is a value made from the configuration; `cluster` hands it to the `kubeflow` SDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.kubernetes import KubernetesConfig, TolerationConfig
from ava_core.launching.mpi import HOSTFILE, SSH_FOLDER

ENVIRONMENT = (
    "AVA_TRACKING_URI",
    "AVA_GIT_COMMIT",
    "AVA_PIPELINE_RUN",
    "AVA_LOG_LEVEL",
    "AVA_KERNELS",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_RUN_ID",
)
"""Variables of the process that starts the job which its ranks get too. Secrets are not among them: whoever may list
TrainJobs can read them; they come from `kubernetes.secrets`."""
SECRETS = Path("/run/ava-secrets")
"""Where they are mounted, one file each: for a TrainJob's nodes the controller refuses variables from a Secret."""
GPU = "nvidia.com/gpu"
REPLICATED_JOBS = ("launcher", "node")
"""Parts of the runtime; both have one container, which is named `node`."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What is asked of the cluster.

    Attributes:
        name: the same for the same work, so that nobody can start it twice.
        key: the step's key, half of it, as the work folder has it.
        command: of the launcher's container.
        environment: variables of all containers.
        kubernetes: resources, volume, secrets, runtime.
    """

    name: str
    key: str
    command: list[str]
    environment: dict[str, str]
    kubernetes: KubernetesConfig
    step: str = "train"

    @property
    def resources(self) -> dict[str, str]:
        """Resources of each machine, by the names that the SDK and Kubernetes have for them."""
        settings = self.kubernetes.train_job
        resources = {"cpu": str(settings.cpu), "memory": settings.memory}
        if settings.gpus_per_node:
            resources[self.kubernetes.steps.pod(self.step).gpu_type or GPU] = str(settings.gpus_per_node)
        return resources

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the TrainJob itself."""
        return {"app.kubernetes.io/name": "ava-moe", "app.kubernetes.io/component": self.step}

    @property
    def annotations(self) -> dict[str, str]:
        """What the training is, for people: the key in full, and the pipeline run that asked for it."""
        run = self.environment.get("AVA_PIPELINE_RUN")
        return {"ava-moe/key": self.key, **({"ava-moe/pipeline-run": run} if run else {})}

    def pod(self, replicated_job: str) -> dict[str, Any]:
        """What pods of the job have beyond what the runtime says, in Kubernetes' words; one container, `node`."""
        work = self.kubernetes.work
        volumes: list[dict[str, Any]] = [{"name": "work", "persistentVolumeClaim": {"claimName": work.claim}}]
        mounts: list[dict[str, Any]] = [
            {"name": "work", "mountPath": work.mount_path, **({"subPath": work.sub_path} if work.sub_path else {})}
        ]
        if replicated_job == "launcher" and self.kubernetes.secrets:  # rank 0 runs there, and it alone speaks to MLflow
            volumes.append({"name": "ava-secrets", "projected": {"defaultMode": 0o440, "sources": self._secrets()}})
            mounts.append({"name": "ava-secrets", "mountPath": str(SECRETS), "readOnly": True})
        train = self.kubernetes.steps.pod(self.step)
        metadata = {"labels": self.kubernetes.labels, "annotations": self.kubernetes.annotations}
        return {
            "metadata": {name: dict(values) for name, values in metadata.items() if values},
            "volumes": volumes,
            "volumeMounts": mounts,
            "nodeSelector": dict(self.kubernetes.train_job.node_selector),
            "tolerations": [_toleration(toleration) for toleration in train.tolerations],
            "imagePullSecrets": [{"name": name} for name in self.kubernetes.image_pull_secrets],
        }

    def _secrets(self) -> list[dict[str, Any]]:
        return [
            {
                "secret": {
                    "name": secret.name,
                    "items": [{"key": key, "path": variable} for variable, key in sorted(secret.variables.items())],
                }
            }
            for secret in self.kubernetes.secrets
        ]


def job_name(key: str, step: str = "train") -> str:
    """A name by the training's key, short enough for those that Kubernetes derives from it (63 characters)."""
    return f"ava-{step}-{key[:16]}"


def job_command(
    arguments: Sequence[str],
    *,
    nodes: int,
    processes: int,
    code: str | None = None,
    secrets: Path | None = None,
    hostfile: Path = HOSTFILE,
    ssh: Path = SSH_FOLDER,
) -> list[str]:
    """The command of the launcher's container: `ava_core.launching.mpi`, which starts all ranks.

    Run anywhere with the same effect: it needs `python` (of the environment that has `ava_core`), `mpirun` and `ssh` on
    the PATH, a hostfile that names this machine and the others, and on those an sshd as `runtime.node_command` starts
    it. As root Open MPI wants OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.

    Args:
        arguments: of `ava`, as `train --params-yaml TEXT --shards DIR --output DIR --work DIR`. The configuration must
            have `launcher: local` and `processes: nodes x processes`; the folders are shared by all nodes.
        nodes: machines that take part, the launcher's included.
        processes: ranks on each of them.
        code: digest of the training's code here (`code_of` of the step); the job refuses another one.
        secrets: folder in the container with one file for each secret variable.
        hostfile: names of all nodes; the first word of each line is read.
        ssh: folder with id_rsa, id_rsa.pub and authorized_keys.
    """
    command = ["python", "-m", "ava_core.launching.mpi", "--nodes", str(nodes), "--processes", str(processes)]
    for flag, value, default in (
        ("--code", code, None),
        ("--secrets", secrets, None),
        ("--hostfile", hostfile, HOSTFILE),
        ("--ssh", ssh, SSH_FOLDER),
    ):
        if value != default:
            command += [flag, str(value)]
    return [*command, "--", *arguments]


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that the job gets; an address with credentials in it is left out.

    Args:
        environment: usually `os.environ`.
    """
    from ava_core.redaction import redact

    given = {name: environment[name] for name in ENVIRONMENT if environment.get(name)}
    return {name: value for name, value in given.items() if redact(value) == value}


def _toleration(config: TolerationConfig) -> dict[str, Any]:
    values = config.model_dump(exclude_none=True)
    if (seconds := values.pop("seconds", None)) is not None:
        values["tolerationSeconds"] = seconds
    return values
