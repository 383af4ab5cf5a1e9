"""The pipeline with the real steps, on a small text and a small model: runners, `ava` and MLflow together.

With Docker the steps run in the image that was built last; build it from this checkout with `make images`.
"""

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

from components.image import choose
from pipelines import local

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ASSETS = Path(__file__).parents[1] / "assets"
STEPS = ["preprocess", "train", "quantize-int8", "evaluate", "gate", "register", "record-outcome"]
OUTPUTS = {
    "preprocess": "shards",
    "train": "model",
    "quantize-int8": "quantized",
    "evaluate": "evaluation",
    "register": "registration",
}
COMPUTED = ["preprocess", "train", "quantize-int8", "evaluate"]
"""What finished work is taken of; the others ask the registry."""
RUNNERS = ["host", "docker"]
LONGER = {"steps": 120, "evaluate_every": 40, "checkpoint_every": 4}


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(ASSETS / "verse.txt", folder)
    return folder


@pytest.fixture
def runner(request) -> str:
    """`docker` only where there are an engine and an image."""
    if request.param == "docker":
        from docker.errors import ImageNotFound

        try:
            request.getfixturevalue("engine").images.get(choose())
        except ImageNotFound:
            pytest.skip(f"{choose()}: no such image here: `make images` builds it")
    return request.param


@pytest.fixture
def run_pipeline(make_params, mlflow_server, tmp_path, data, monkeypatch, capfd):
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)

    def call(runner: str, *flags: str, code: int = 0, work: str = "work", train=None, model="ava-whole-pipeline"):
        """The run's folder, each step's status and whether it was cached, and what was printed."""
        params = make_params(
            data={"sources": [{"path": "verse.txt"}], "document_separator": "\n\n"},
            train=train or {},
            register={"model_name": model, "gate": {"max_bits_per_byte": {"at_most": 9.0}}},
        )
        monkeypatch.setenv("AVA_WORK", str(tmp_path / work))
        before = set((tmp_path / "runs").glob("ava-*"))
        given = ["--params", str(params), "--data", str(data), "--runs", str(tmp_path / "runs"), "--runner", runner]
        returned = local.main([*given, *flags])
        output = capfd.readouterr().out
        assert returned == code, output
        table = output[output.index("\nstep ") :].split("\n\n")[0]
        rows = re.findall(r"^([a-z0-9-]+) +(succeeded|failed|not run)(?: +[0-9.]+ +(yes|no))?", table, re.MULTILINE)
        (run,) = set((tmp_path / "runs").glob("ava-*")) - before
        return run, {name: (status, cached) for name, status, cached in rows}, output

    return call


def cached_are(*names: str) -> dict[str, tuple[str, str]]:
    return {name: ("succeeded", "yes" if name in names else "no") for name in STEPS}


def manifest(run: Path, name: str) -> dict:
    return json.loads((run / name / OUTPUTS[name] / "manifest.json").read_text())


@pytest.mark.parametrize("runner", RUNNERS, indirect=True)
def test_only_what_changed_is_computed_again(run_pipeline, runner, mlflow_server, data):
    model = f"ava-{runner}"
    first, statuses, output = run_pipeline(runner, model=model)
    assert statuses == cached_are()
    assert f"{model} version 1: @challenger, @champion" in output
    assert f"{mlflow_server}/#/models/{model}/versions/1?workflowType=machine_learning" in output
    assert (first / "evaluate" / "report").read_bytes().startswith(b"<!")
    assert (first / "register" / "promoted").read_text() == "true"
    assert (first / "register" / "model_version").read_text() == "1"
    outcome = json.loads((first / "record-outcome" / "outcome" / "outcome.json").read_text())
    assert outcome.pop("run_url").startswith(f"{mlflow_server}/#/experiments/")
    assert outcome == {"state": "SUCCEEDED", "failed_task": None, "message": ""}

    second, statuses, output = run_pipeline(runner, model=model)
    assert statuses == cached_are(*COMPUTED)
    assert f"{model} version 1" in output, "registering the same evaluation again makes no second version"
    assert all(manifest(first, name) == manifest(second, name) for name in COMPUTED)

    _, statuses, _ = run_pipeline(runner, "--from", "evaluate", model=model)
    assert statuses == cached_are(*COMPUTED[:3])

    text = (data / "verse.txt").read_bytes()
    (data / "verse.txt").write_bytes(text[:1000] + bytes([text[1000] ^ 1]) + text[1001:])
    _, statuses, _ = run_pipeline(runner, model=model)
    assert statuses == cached_are()


@pytest.mark.parametrize("runner", ["docker"], indirect=True)
def test_containers_make_the_bytes_that_the_host_makes_and_take_up_its_work(run_pipeline, runner):
    host, _, _ = run_pipeline("host", work="host")
    docker, statuses, _ = run_pipeline(runner, work="docker")
    assert statuses == cached_are()
    for name in COMPUTED[:3]:
        assert manifest(host, name)["files"] == manifest(docker, name)["files"], name
    if any(manifest(host, name)["code"] != manifest(docker, name)["code"] for name in COMPUTED):
        pytest.skip("shards and models have the same bytes; the rest needs an image of this checkout: `make images`")
    assert all(manifest(host, name) == manifest(docker, name) for name in COMPUTED)
    _, statuses, _ = run_pipeline(runner, work="host")
    assert statuses == cached_are(*COMPUTED)


@pytest.mark.parametrize("runner", RUNNERS, indirect=True)
def test_step_killed_in_the_middle_is_a_failure_and_is_gone_on_with(run_pipeline, runner, request, tmp_path):
    def kill_training() -> None:
        """Once it has a checkpoint, as the kernel does when memory runs out."""
        while not any((tmp_path / "work" / "train").glob("*/state/**/step-*[0-9]/checkpoint.json")):
            time.sleep(0.02)
        if runner == "docker":
            (container,) = request.getfixturevalue("engine").containers.list(filters={"label": "ava.run"})
            container.kill("SIGKILL")
        else:
            # A child of another test that is a zombie, or ends meanwhile, has no command line.
            children = psutil.process_iter(["cmdline", "ppid"])
            of_ours = [child for child in children if child.info["ppid"] == os.getpid()]
            (step,) = [child for child in of_ours if "train" in (child.info["cmdline"] or [])]
            step.kill()

    killer = threading.Thread(target=kill_training, daemon=True)
    killer.start()
    run, statuses, output = run_pipeline(runner, code=1, train=LONGER)
    killer.join(10)
    assert "train failed: SIGKILL (out of memory?)" in output
    assert statuses["train"] == ("failed", "no") and statuses["evaluate"] == ("not run", "")
    outcome = json.loads((run / "record-outcome" / "outcome" / "outcome.json").read_text())
    assert outcome["state"] == "FAILED"
    assert not list((tmp_path / "work" / "train").glob("*/output")), "half-written work was taken for finished"

    _, statuses, output = run_pipeline(runner, train=LONGER)
    assert statuses == cached_are("preprocess")
    assert "train: going on from" in output
