"""Every step, killed in the middle and run again, ends with the bytes of an undisturbed run: the real command line."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

import ava_core
from ava_core.runtime.boundary import is_outside
from ava_core.runtime.code import code_of
from ava_core.runtime.digests import digest_tree
from ava_core.steps.table import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Long enough that a kill halfway falls into the work and not into the imports.
LONGER = {"train": {"steps": 40, "evaluate_every": 10, "checkpoint_every": 4}}
CHATS = {
    "conversations": {"sources": [{"path": "chats.jsonl"}], "max_tokens": 64},
    "preferences": {"sources": [{"path": "chats.jsonl"}], "max_tokens": 128, "max_pairs": 300},
    "prompts": {"sources": [{"path": "chats.jsonl"}], "max_tokens": 64},
    "retrieval": {"sources": [{"path": "plays"}], "passage_tokens": 32, "overlap_tokens": 4, "embedding": "model"},
    "sft": {"steps": 40, "evaluate_every": 10, "checkpoint_every": 4, "samples": 2},
    "reward": {"steps": 60, "evaluate_every": 10, "checkpoint_every": 4, "sequence_length": 128},
    "grpo": {
        "steps": 16,
        "checkpoint_every": 4,
        "samples": 2,
        "global_batch_size": 16,
        "group_size": 4,
        "max_new_tokens": 16,
        "sequence_length": 128,
    },
    "dpo": {"steps": 40, "evaluate_every": 10, "checkpoint_every": 4, "samples": 2, "sequence_length": 128},
}
# Python runs it first in every process. A name is written at once, for a process of a training ends without a farewell.
TRACE = """
import os, sys
file = os.open(os.environ["IMPORTED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(lambda event, args: event == "import" and os.write(file, f"{args[0]}\\n".encode()) and None)
"""


FOLDERS = ("shards", "model", "conversations", "preferences", "prompts", "quantized", "evaluation")
# The worse answers are the trained model's.
ORDER = sorted(STEPS, key=lambda step: [*STEPS].index("train") + 0.5 if step == "preferences" else [*STEPS].index(step))


class Steps:
    """The steps on one corpus; `folder_of_attempt` holds outputs and work of one attempt."""

    def __init__(self, params: Path, data: Path, tracking_uri: str, finished: Path) -> None:
        self.params, self.data, self.tracking_uri, self.finished = params, data, tracking_uri, finished

    def command(self, step: str, folder_of_attempt: Path) -> list[str]:
        folder = {name: str(self.finished / name) for name in FOLDERS}
        inputs = {
            "preprocess": ["--data", str(self.data)],
            "train": ["--shards", folder["shards"]],
            "conversations": ["--shards", folder["shards"], "--data", str(self.data)],
            "sft": ["--model", folder["model"], "--conversations", folder["conversations"]],
            "preferences": ["--shards", folder["shards"], "--data", str(self.data), "--model", folder["model"]],
            "prompts": ["--shards", folder["shards"], "--data", str(self.data)],
            "reward": ["--model", folder["model"], "--preferences", folder["preferences"]],
            "grpo": ["--model", folder["model"], "--prompts", folder["prompts"]],
            "dpo": ["--model", folder["model"], "--preferences", folder["preferences"]],
            "index": ["--shards", folder["shards"], "--data", str(self.data), "--model", folder["model"]],
            "quantize": ["--model", folder["model"], "--shards", folder["shards"], "--scheme", "int8"],
            "evaluate": ["--model", folder["model"], "--shards", folder["shards"], "--quantized", folder["quantized"]],
            "gate": ["--model", folder["model"], "--quantized", folder["quantized"]],
        }
        inputs["gate"] += ["--evaluation", folder["evaluation"]]
        inputs["register"] = inputs["gate"]
        output = folder_of_attempt / STEPS[step].output
        ava = [sys.executable, "-m", "ava_core.cli.main", *STEPS[step].words, "--params", str(self.params), "--quiet"]
        return [*ava, *inputs[step], "--output", str(output), "--work", str(folder_of_attempt / "work")]

    def start(self, step: str, folder_of_attempt: Path, *more: str) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_"))}
        folder_of_attempt.mkdir(parents=True, exist_ok=True)
        (folder_of_attempt / "sitecustomize.py").write_text(TRACE)
        environment = clean | {
            "AVA_TRACKING_URI": self.tracking_uri,
            "PYTHONPATH": str(folder_of_attempt),
            "IMPORTED": str(self.imported(step, folder_of_attempt)),
        }
        command = [*self.command(step, folder_of_attempt), *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def imported(self, step: str, folder_of_attempt: Path) -> Path:
        """A file with the names of all modules that the step's processes have imported."""
        return folder_of_attempt / f"{step}.imported"

    def run(self, step: str, folder_of_attempt: Path, *more: str) -> float:
        started = time.monotonic()
        process = self.start(step, folder_of_attempt, *more)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed
        return time.monotonic() - started

    def kill_in_the_middle(self, step: str, folder: Path, seconds: float) -> Path:
        """Start a step that takes about `seconds` and SIGKILL it; where it was. Earlier, if it was too quick."""
        for share in (0.7, 0.55, 0.4):
            folder_of_attempt = folder / f"killed-at-{share}"
            process = self.start(step, folder_of_attempt)
            time.sleep(share * seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == -signal.SIGKILL and not (folder_of_attempt / STEPS[step].output).exists():
                return folder_of_attempt
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
    lines = [line for line in corpus_text.splitlines() if line.strip()][:1500]
    rows = [{"prompt": asked, "completion": answer} for asked, answer in pairwise(lines)]
    (data / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    changes = {**LONGER, **CHATS, "data": {"sources": [{"path": "plays"}]}, "register": {"model_name": "killed-test"}}
    params = root / "params.yaml"
    params.write_text(yaml.safe_dump(merged(TINY_PARAMS, changes)))
    steps = Steps(params, data, mlflow_server, root / "whole")
    return steps, {step: steps.run(step, root / "whole") for step in ORDER}


@pytest.mark.parametrize("step", [name for name in STEPS if name != "register"])
def test_killed_step_run_again_ends_with_the_bytes_of_an_undisturbed_run(undisturbed, tmp_path, step):
    steps, seconds = undisturbed
    folder_of_attempt = steps.kill_in_the_middle(step, tmp_path, seconds[step])
    steps.run(step, folder_of_attempt)
    name = STEPS[step].output
    assert digest_tree(folder_of_attempt / name) == digest_tree(steps.finished / name)


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


ASKED = ("config", "distributed", "steps")
"""Where what is outside of the keys asks for values that are in them: settings, threads, ranks. It computes nothing."""


def not_in_the_key(step: str, imported: Path) -> set[str]:
    """Modules of Ava that were imported, and neither enter the step's key nor are known to change no result."""
    package = Path(ava_core.__file__).parent
    names = {name for name in imported.read_text().split() if name.startswith("ava_core.")}
    paths = {name: package.joinpath(*name.split(".")[1:]) for name in names}
    modules = {name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").is_file()}
    assert len(modules) > 20
    unknown = {name for name in modules - code_of(STEPS[step]).files.keys() if not is_outside(name)}
    return {name for name in unknown if name.split(".")[1] not in ASKED}


@pytest.mark.parametrize("step", STEPS)
def test_whatever_a_step_imports_enters_its_key_or_can_change_no_result(undisturbed, step):
    steps, _ = undisturbed
    assert not_in_the_key(step, steps.imported(step, steps.finished)) == set()


def test_whatever_two_processes_of_a_training_import_enters_its_key(undisturbed, tmp_path):
    steps, _ = undisturbed
    steps.run("train", tmp_path, "--set", "train.processes=2", "--set", "threads=2")
    imported = steps.imported("train", tmp_path)
    assert imported.read_text().split().count("ava_core.training.trainer") >= 2  # both have told what they imported
    assert not_in_the_key("train", imported) == set()
