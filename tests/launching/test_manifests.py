"""The TrainJobs and the runtime, byte by byte, and held against the API's models."""

import pytest
import yaml

pytest.importorskip("kubeflow", reason="the package kubeflow is not installed")
from kubeflow_trainer_api import models

from ava_core.config import resolve
from tests.launching import goldens
from tests.launching.fake_cluster import refusals


@pytest.fixture(scope="module")
def rendered():
    return goldens.render()


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml", "runtime.yaml"])
def test_manifests_are_the_golden_ones(rendered, name):
    assert rendered[name] == (goldens.FOLDER / name).read_text(), f"see {goldens.__file__}"


def test_runtime_is_one_that_the_api_has():
    given = yaml.safe_load((goldens.FOLDER / "runtime.yaml").read_text())
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(given).to_dict() == given


def test_api_models_see_what_the_api_does_not_have():
    """The check that the fake cluster makes of every request finds a wrong field wherever it is."""
    runtime = goldens.manifest(goldens.IMAGE)
    for path, value in (
        (("spec", "trainer", "imagine"), "x"),
        (("spec", "activeDeadlineSecond"), 1),
        (("spec", "runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "jobs"), []),
    ):
        body = yaml.safe_load((goldens.FOLDER / "gpu.yaml").read_text())
        assert refusals(body, {"deepspeed-distributed": runtime}) == []
        section = body
        for part in path[:-1]:
            section = section[part]
        section[path[-1]] = value
        assert path[-1] in str(refusals(body, {"deepspeed-distributed": runtime}))


def test_no_secret_is_in_a_manifest(rendered):
    assert "never-in-a-manifest" not in str(rendered)
    assert "MLFLOW_TRACKING_TOKEN" in rendered["gpu.yaml"]  # the name of the file that it is mounted as


@pytest.mark.parametrize("case", goldens.CASES)
def test_parameters_in_the_command_are_those_of_the_training(case):
    job, inner = goldens.build_job(goldens.CASES[case])
    text = job.command[job.command.index("--params-yaml") + 1]
    there = resolve(params_text=text).config
    assert there.train == inner.config.train
    assert there.train.launcher == "local"
    assert (there.seed, there.threads, there.model) == (inner.config.seed, inner.config.threads, inner.config.model)


def test_ranks_are_machines_times_processes():
    for case, ranks in (("cpu", 4), ("gpu", 16)):
        job, inner = goldens.build_job(goldens.CASES[case])
        assert inner.ranks == ranks
        nodes, processes = (job.command[job.command.index(flag) + 1] for flag in ("--nodes", "--processes"))
        assert int(nodes) * int(processes) == ranks
