"""The section `kubernetes` in the compiled pipeline; the golden files hold all of it, byte for byte."""

import pytest
import yaml

from ava_core.config import resolve
from ava_core.errors import ConfigError
from pipelines import compile as compiling
from pipelines import kubernetes
from pipelines.compile import compile_pipeline


def compiled(text: str) -> tuple[dict, dict]:
    """Containers of the PipelineSpec and settings of the PlatformSpec, by step or component."""
    config = resolve(params_text=f"kubernetes: {text}").config
    ir, platform = yaml.safe_load_all(compile_pipeline(config.quantize.schemes, "image", config.kubernetes))
    containers = {
        name.removeprefix("exec-"): executor["container"]
        for name, executor in ir["deploymentSpec"]["executors"].items()
        if "container" in executor
    }
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return containers, {name.removeprefix("exec-"): settings for name, settings in executors.items()}


def test_an_empty_section_sets_nothing_but_the_run_s_id():
    containers, settings = compiled("{}")
    assert all(set(container) == {"args", "command", "image"} for container in containers.values())
    assert all(set(setting) == {"fieldPathAsEnv"} for setting in settings.values())
    assert settings["train"]["fieldPathAsEnv"] == [
        {"name": "AVA_PIPELINE_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    ]


def test_what_is_set_for_a_step_reaches_its_pods_and_no_others():
    containers, settings = compiled("{steps: {quantize: {memory_limit: 2Gi, timeout_seconds: 9, shared_memory: 1Gi}}}")
    touched = {name for name, container in containers.items() if "resources" in container}
    assert touched == {"quantize-int8"}
    assert {name for name, setting in settings.items() if "activeDeadlineSeconds" in setting} == touched
    assert {name for name, setting in settings.items() if "emptyDirMounts" in setting} == touched


def test_every_pod_has_the_work_volume_where_its_variable_says():
    containers, settings = compiled("{work: {claim: ava-work, mount_path: /durable}, preprocess_parts: 2}")
    assert "preprocess-part" in containers
    for name, container in containers.items():
        assert {"name": "AVA_WORK", "value": "/durable"} in container["env"]
        (mount,) = settings[name]["pvcMount"]
        assert (mount["constant"], mount["mountPath"]) == ("ava-work", "/durable")


def test_two_variables_may_come_from_one_key_of_a_secret():
    _, settings = compiled("{secrets: [{name: s, variables: {ONE: key, TWO: key}}]}")
    pairs = [
        (pair["envVar"], pair["secretKey"]) for entry in settings["train"]["secretAsEnv"] for pair in entry["keyToEnv"]
    ]
    assert pairs == [("ONE", "key"), ("TWO", "key")]


def test_gpus_of_every_step_don_t_reach_the_exit_handler():
    containers, _ = compiled("{steps: {every: {gpus: 1}}}")
    with_gpu = {name for name, container in containers.items() if "accelerator" in container.get("resources", {})}
    assert with_gpu == set(containers) - {"record-outcome"}


def test_parts_without_a_volume_on_which_they_meet_are_refused_before_anything_is_written(tmp_path):
    flags = ["--output", str(tmp_path / "p.yaml"), "--set", "kubernetes.preprocess_parts=4"]
    with pytest.raises(ConfigError, match=r"kubernetes\.preprocess_parts = 4: needs kubernetes\.work\.claim"):
        compiling.main(flags)
    assert not (tmp_path / "p.yaml").exists()
    compiling.main([*flags, "--set", "kubernetes.work.claim=ava-work"])
    assert (tmp_path / "p.yaml").exists()


def test_parts_on_this_machine_need_no_volume():
    config = resolve(overrides=["kubernetes.preprocess_parts=2"]).config
    assert "preprocess-part" in compile_pipeline(config.quantize.schemes, "image", config.kubernetes)
    with pytest.raises(ConfigError):
        kubernetes.check(config)
