"""The compiled pipeline, byte for byte.

Renew the golden files after an intended change, and read the difference before committing it:
    RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/pipelines/test_compile.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ava_core.errors import ConfigError
from ava_core.steps import SCHEMES
from pipelines import compile as compiling
from pipelines.compile import compile_pipeline

GOLDEN = Path(__file__).with_name("golden")
IMAGE = "registry.invalid/ava@sha256:0"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("schemes", [("int8",), ("int8", "int4")], ids="-".join)
def test_ir_is_the_golden_one(schemes):
    text = compile_pipeline(schemes, IMAGE)
    path = GOLDEN / f"pipeline-{'-'.join(schemes)}.yaml"
    if os.environ.get("RENEW_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_another_process_compiles_the_same_bytes(tmp_path):
    command = [sys.executable, "-m", "pipelines.compile", "--params", "params.yaml", "--output"]
    for name, seed in (("one.yaml", "1"), ("two.yaml", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, str(tmp_path / name)], check=True, cwd=ROOT, env=environment, capture_output=True)
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_every_component_runs_the_image_asked_for():
    executors = yaml.safe_load(compile_pipeline(SCHEMES, IMAGE))["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values() if "container" in executor}
    assert images == {IMAGE} and len(executors) == 8


def test_schemes_of_the_configuration_shape_the_graph(tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text("quantize:\n  schemes: [int4]\n")
    output = tmp_path / "build" / "pipeline.yaml"
    compiling.main(["--params", str(params), "--output", str(output)])
    components = yaml.safe_load(output.read_text())["components"]
    assert "comp-quantize-int4" in components and "comp-quantize-int8" not in components
    assert "schemes int4" in capsys.readouterr().out


def test_wrong_configuration_is_refused_and_nothing_is_written(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("quantize:\n  schemes: [int3]\n")
    with pytest.raises(ConfigError, match=r"quantize\.schemes"):
        compiling.main(["--params", str(params), "--output", str(tmp_path / "pipeline.yaml")])
    assert not (tmp_path / "pipeline.yaml").exists()


def test_wrong_configuration_exits_2_with_a_line_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pipelines.compile",
        "--output",
        str(tmp_path / "p.yaml"),
        "--set",
        "train.stepz=1",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 2
    assert answer.stderr.startswith("pipelines.compile: --set: train.stepz: unknown key")
    assert answer.stderr.count("\n") == 1


def test_steps_and_exit_handler_that_must_run_every_time_are_not_cached():
    ir = yaml.safe_load(compile_pipeline(("int8",), IMAGE))
    steps = ir["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    uncached = {name for name, task in steps.items() if not task["cachingOptions"].get("enableCache")}
    assert uncached == {"register"}
    assert not ir["root"]["dag"]["tasks"]["record-outcome"]["cachingOptions"].get("enableCache")


def test_importing_components_and_pipelines_loads_nothing_heavy():
    code = (
        "import sys, pipelines.local, pipelines.submit, pipelines.compile, pipelines.ava_pipeline, components\n"
        "heavy = {'torch', 'mlflow', 'deepspeed', 'transformers', 'onnxruntime', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
