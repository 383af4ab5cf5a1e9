"""The section `kubernetes`: what a step's pods get of it."""

import pytest

from ava_core.config import resolve
from ava_core.config.kubernetes import KubernetesConfig, StepsConfig, _amount
from ava_core.config.schema import AvaConfig
from ava_core.steps.table import STEPS


def section(text: str) -> KubernetesConfig:
    return resolve(params_text=f"kubernetes: {text}").config.kubernetes


def test_every_step_has_a_section_of_its_own():
    assert {field.alias or name for name, field in StepsConfig.model_fields.items()} == {"every", *STEPS}


def test_no_step_has_the_section_in_its_key():
    """Other pods compute the same; a finished output stays good when the cluster changes."""
    assert "kubernetes" in AvaConfig.model_fields
    assert [spec.name for spec in STEPS.values() if "kubernetes" in spec.sections] == []


def test_a_step_has_what_every_step_has_and_its_own_over_it():
    steps = section(
        "{steps: {every: {memory_limit: 8Gi, gpus: 1, tolerations: [{key: a}]},"
        " train: {memory_limit: 64Gi, gpus: 0}, register: {timeout_seconds: 5}}}"
    ).steps
    assert steps.pod("train").memory_limit == "64Gi" and steps.pod("train").gpus == 0
    assert [toleration.key for toleration in steps.pod("train").tolerations] == ["a"]
    assert (steps.pod("register").memory_limit, steps.pod("register").timeout_seconds) == ("8Gi", 5)
    assert steps.pod("evaluate") == steps.every


def test_the_exit_handler_has_what_every_step_has_without_gpus():
    steps = section("{steps: {every: {memory_limit: 8Gi, gpus: 1}}}").steps
    assert (steps.pod("record_outcome").memory_limit, steps.pod("record_outcome").gpus) == ("8Gi", 0)


def test_numbers_of_cpus_and_bytes_may_be_written_as_such():
    pod = section("{steps: {train: {cpu_limit: 4, cpu_request: 0.5, memory_limit: 8000000000}}}").steps.train
    assert (pod.cpu_limit, pod.cpu_request, pod.memory_limit) == ("4", "0.5", "8000000000")


@pytest.mark.parametrize(
    ("quantity", "amount"), [("500m", 0.5), ("4", 4), (".5", 0.5), ("1K", 1e3), ("2Mi", 2 * 2**20), ("3Ei", 3 * 2**60)]
)
def test_quantities_are_compared_as_kubernetes_means_them(quantity, amount):
    assert _amount(quantity) == amount


def test_labels_with_dots_and_slashes_come_from_files_and_from_set():
    text = "{kueue.x-k8s.io/queue-name: training}"
    assert section(f"{{labels: {text}}}").labels == {"kueue.x-k8s.io/queue-name": "training"}
    config = resolve(overrides=[f"kubernetes.labels={text}"]).config
    assert config.kubernetes.labels == {"kueue.x-k8s.io/queue-name": "training"}
