"""Every step, killed in the middle and run again, ends with the bytes of an undisturbed run: the real command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ava_core.runtime.digests import digest_tree
from ava_core.steps import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Long enough that a kill halfway falls into the work and not into the imports.
LONGER = {"train": {"steps": 40, "evaluate_every": 10, "checkpoint_every": 4}}


class Steps:
    """The steps on one corpus; `place` holds outputs and work of one attempt."""

    def __init__(self, params: Path, data: Path, tracking_uri: str, finished: Path) -> None:
        self.params, self.data, self.tracking_uri, self.finished = params, data, tracking_uri, finished

    def command(self, step: str, place: Path) -> list[str]:
        folder = {name: str(self.finished / name) for name in ("shards", "model", "quantized", "evaluation")}
        inputs = {
            "preprocess": ["--data", str(self.data)],
            "train": ["--shards", folder["shards"]],
            "quantize": ["--model", folder["model"], "--shards", folder["shards"], "--scheme", "int8"],
            "evaluate": ["--model", folder["model"], "--shards", folder["shards"], "--quantized", folder["quantized"]],
            "gate": ["--model", folder["model"], "--quantized", folder["quantized"]],
        }
        inputs["gate"] += ["--evaluation", folder["evaluation"]]
        inputs["register"] = inputs["gate"]
        output = place / STEPS[step].output
        ava = [sys.executable, "-m", "ava_core.cli.main", step, "--params", str(self.params), "--quiet"]
        return [*ava, *inputs[step], "--output", str(output), "--work", str(place / "work")]

    def start(self, step: str, place: Path, *more: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_"))}
        environment = clean | {"AVA_TRACKING_URI": self.tracking_uri}
        command = [*self.command(step, place), *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, step: str, place: Path, *more: str) -> float:
        started = time.monotonic()
        process = self.start(step, place, *more)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
        return time.monotonic() - started

    def kill_in_the_middle(self, step: str, folder: Path, seconds: float) -> Path:
        """Start a step that takes about `seconds` and SIGKILL it; where it was. Earlier, if it was too quick."""
        for share in (0.7, 0.55, 0.4):
            place = folder / f"killed-at-{share}"
            process = self.start(step, place)
            time.sleep(share * seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == -signal.SIGKILL and not (place / STEPS[step].output).exists():
                return place
        raise AssertionError(f"{step} was never caught in the middle")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, mlflow_server, corpus_text):
    """All steps, run once; and how long each took."""
    import yaml

    from tests.conftest import TINY_PARAMS, merged

    root = tmp_path_factory.mktemp("killed")
    data = root / "data"
    (data / "plays").mkdir(parents=True)
    for index, start in enumerate(range(0, 48_000, 4_000)):
        (data / "plays" / f"play-{index:02}.txt").write_text(corpus_text[start : start + 4_000])
    changes = {**LONGER, "data": {"sources": [{"path": "plays"}]}, "register": {"model_name": "killed-test"}}
    params = root / "params.yaml"
    params.write_text(yaml.safe_dump(merged(TINY_PARAMS, changes)))
    steps = Steps(params, data, mlflow_server, root / "whole")
    return steps, {step: steps.run(step, root / "whole") for step in STEPS}


@pytest.mark.parametrize("step", [name for name in STEPS if name != "register"])
def test_killed_step_run_again_ends_with_the_bytes_of_an_undisturbed_run(undisturbed, tmp_path, step):
    steps, seconds = undisturbed
    place = steps.kill_in_the_middle(step, tmp_path, seconds[step])
    steps.run(step, place)
    name = STEPS[step].output
    assert digest_tree(place / name) == digest_tree(steps.finished / name)


def test_killed_registration_run_again_ends_with_one_version(undisturbed, tmp_path):
    """It has effects outside its output, so it is idempotent rather than equal; under a name of its own here."""
    from ava_core.registry import list_versions

    steps, _ = undisturbed
    name = ("--set", "register.model_name=killed-twice")
    process = steps.start("register", tmp_path, *name)
    while process.poll() is None and not list((tmp_path / "work" / "register").glob("*/output.partial/.scratch/*")):
        time.sleep(0.01)  # until the run is open and its files are being gathered
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "registration").exists()
    steps.run("register", tmp_path, *name)
    record = json.loads((tmp_path / "registration" / "registration.json").read_text())
    (version,) = list_versions("killed-twice", steps.tracking_uri)
    assert record["version"] == version.version == 1
    assert set(version.aliases) >= {"challenger"}
