"""What must not drift: the direction of imports, what is light to import, and dvc.yaml against the step table."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ava_core.config.align import StageName
from ava_core.steps.table import STEPS
from pipelines.stages import render

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
ALIGNED = yaml.safe_load(render([*get_args(StageName), "index"]))
"""The same with all stages of alignment, and an index."""
ALIGNING = ALIGNED["stages"].keys() - DVC["stages"].keys()
HEAVY = ("torch", "mlflow", "deepspeed", "transformers", "datasets", "onnxruntime", "pandas", "matplotlib", "numpy")
PATHS = {"preprocess": "shards", "train": "model", "quantize": "quantized", "evaluate": "evaluation"}


def python(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AVA_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_imports_point_one_way():
    result = python("-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import ava_core.config, ava_core.steps.table, ava_core.errors",
        "import ava_core.cli.main",
        "import ava_core.cli.main as m; m.app(['--help'], standalone_mode=False)",
        "import ava_core.cli.main as m; m.app(['config', 'show'], standalone_mode=False)",
        "import components, pipelines",
    ],
)
def test_import_brings_nothing_heavy(statement):
    result = python("-c", f"{statement}\nimport sys; print('HEAVY', [m for m in {HEAVY} if m in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", [("--help",), ("config", "show")])
def test_command_answers_and_says_how_fast(command, record_property):
    """The design asks for half a second; a shared machine can't promise it, so the time is recorded, not judged."""
    started = time.perf_counter()
    result = python("-m", "ava_core.cli.main", *command)
    record_property("seconds", round(time.perf_counter() - started, 2))
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_dvc_has_a_stage_for_every_step():
    assert list(DVC["stages"]) == ["keys", *(step for step in STEPS if step not in ALIGNING), "figures"]
    assert set(ALIGNED["stages"]) == {"keys", *STEPS, "figures"}


def stage_of(name):
    """As the default pipeline has it; what that leaves out, as one with all stages."""
    return (ALIGNED if name in ALIGNING else DVC)["stages"][name]


def commands(stage) -> list[list[str]]:
    """The `ava` commands of a stage, split; quantize runs a second program too."""
    lines = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
    return [words for words in map(shlex.split, lines) if words[0] == "ava"]


@pytest.mark.parametrize("name", STEPS)
def test_dvc_stage_calls_the_step_with_its_inputs_and_output(name):
    spec, stage = STEPS[name], stage_of(name)
    ((_, *words),) = commands(stage)
    assert tuple(words[: len(spec.words)]) == spec.words
    flags = words[len(spec.words) :]
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    assert given.pop("--params") == "params.yaml"
    output = given.pop("--output")
    assert stage["outs"] == [output]
    assert output.split("/")[:2] == ["outputs", spec.output]
    expected = {f"--{port.name}" for port in spec.pipeline_inputs} | {f"--{choice.name}" for choice in spec.choices}
    assert given.keys() == expected


@pytest.mark.parametrize("name", STEPS)
def test_dvc_stage_depends_on_what_enters_the_key_of_the_step(name):
    spec, stage = STEPS[name], stage_of(name)
    made = {port.name: {f"outputs/{other.output}" for other in STEPS.values() if other.kind == port.kind}
            for port in spec.pipeline_inputs if port.kind}  # fmt: skip
    found = set(stage["deps"]) - {f"outputs/keys/{name}.json"}
    assert len(found) == len(spec.pipeline_inputs) == len(stage["deps"]) - 1
    assert all(len(found & outputs) == 1 for outputs in made.values())
    assert ("data/raw/shakespeare" in found) == (len(made) < len(spec.pipeline_inputs))
    assert f"outputs/keys/{name}.json" in ALIGNED["stages"]["keys"]["outs"]
    assert set(stage["params"]) == {"preset", "hardware", "threads", *spec.sections}


def test_dvc_gathers_the_figures_of_every_step():
    stage = ALIGNED["stages"]["figures"]
    assert {f"outputs/{spec.output}" for spec in STEPS.values()} <= set(stage["deps"])
    assert stage["metrics"] == ["outputs/figures.json"] and "metrics" not in DVC


@pytest.mark.parametrize("name", STEPS)
def test_headlines_are_figures_that_the_step_always_has(name):
    spec = STEPS[name]
    assert spec.headlines and set(spec.headlines) <= {*spec.metrics, *spec.timings}
