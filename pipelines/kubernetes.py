"""The section `kubernetes` of the configuration, applied to the pipeline's tasks.

What KFP's own task has a setter for (resources, retries) goes into the PipelineSpec; the rest is kfp-kubernetes's and
becomes the second document of the compiled file, the PlatformSpec. Local runners leave both aside.
"""

from __future__ import annotations

from typing import Any

from kfp import kubernetes

from ava_core.config import AvaConfig
from ava_core.config.kubernetes import KubernetesConfig, PodConfig
from ava_core.errors import ConfigError

RUN_ID = "metadata.labels['pipeline/runid']"
"""Label of every pod of a run. The placeholder of the run's id is filled in for inputs of components only."""
GPU = "nvidia.com/gpu"


def check(config: AvaConfig) -> None:
    """Refuse what would run on this machine and not on a cluster.

    Raises:
        ConfigError: naming the key.
    """
    section = config.kubernetes
    if section.preprocess_parts > 1 and section.work.claim is None:
        raise ConfigError(
            f"kubernetes.preprocess_parts = {section.preprocess_parts}: needs kubernetes.work.claim: the parts meet on"
            " that volume"
        )


def configure(task: Any, step: str, config: KubernetesConfig) -> None:
    """Give a task what the section says about its step.

    Args:
        task: a `dsl.PipelineTask` of a container component.
        step: the step's name in the step table.
        config: the section.
    """
    pod = config.steps.pod(step)
    _set_resources(task, pod)
    _set_nodes(task, pod)
    _set_volumes(task, pod, config)
    _set_environment(task, config)
    _set_pod(task, config)
    if pod.timeout_seconds is not None:
        kubernetes.set_timeout(task, pod.timeout_seconds)


def repeat(task: Any, step: str, config: KubernetesConfig) -> None:
    """Set a task's retry policy: a failed pod is started again after a pause. Only for what may run twice."""
    retry = config.retry
    retries = config.steps.pod(step).retries
    count = retry.count if retries is None else retries
    if count:
        task.set_retry(
            count,
            backoff_duration=f"{retry.seconds}s",
            backoff_factor=retry.factor,
            # Not the longest pause: Argo counts it from the step's first start. KFP's default is an hour.
            backoff_max_duration=f"{retry.window_seconds}s",
        )


def _set_resources(task: Any, pod: PodConfig) -> None:
    for name in ("cpu_request", "cpu_limit", "memory_request", "memory_limit"):
        if (value := getattr(pod, name)) is not None:
            getattr(task, f"set_{name}")(value)
    if pod.gpus:
        task.set_accelerator_type(pod.gpu_type or GPU).set_accelerator_limit(pod.gpus)


def _set_nodes(task: Any, pod: PodConfig) -> None:
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key,
            operator=toleration.operator,
            value=toleration.value,
            effect=toleration.effect,
            toleration_seconds=toleration.seconds,
        )


def _set_volumes(task: Any, pod: PodConfig, config: KubernetesConfig) -> None:
    if config.work.claim is not None:
        kubernetes.mount_pvc(task, config.work.claim, config.work.mount_path, config.work.sub_path)
        task.set_env_variable("AVA_WORK", config.work.mount_path)
    if pod.shared_memory is not None:
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", pod.shared_memory)  # noqa: S108


def _set_environment(task: Any, config: KubernetesConfig) -> None:
    kubernetes.use_field_path_as_env(task, "AVA_PIPELINE_RUN", RUN_ID)
    for secret in config.secrets:
        # One call a variable: kfp-kubernetes maps keys to variables, and two variables may take the same key.
        for variable, key in secret.variables.items():
            kubernetes.use_secret_as_env(task, secret.name, {key: variable})


def _set_pod(task: Any, config: KubernetesConfig) -> None:
    if config.image_pull_policy is not None:
        kubernetes.set_image_pull_policy(task, config.image_pull_policy)
    if config.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, config.image_pull_secrets)
    for key, value in config.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in config.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    identity = {name: getattr(config, name) for name in ("run_as_user", "run_as_group", "run_as_non_root")}
    if any(value is not None for value in identity.values()):
        kubernetes.set_security_context(task, **identity)
