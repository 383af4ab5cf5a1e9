"""The compiled pipeline, byte for byte: golden/NAME.yaml is what golden/NAME.params.yaml compiles to.

Renew the golden files after an intended change, and read the difference before committing it:
    RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/pipelines/test_compile.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import components

from ava_core.config import resolve
from ava_core.errors import ConfigError
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS
from components import image as images
from pipelines import compile as compiling
from pipelines.compile import compile_configured, compile_pipeline

GOLDEN = Path(__file__).with_name("golden")
VARIANTS = sorted(path.name.removesuffix(".params.yaml") for path in GOLDEN.glob("*.params.yaml"))
IMAGE = "registry.invalid/ava@sha256:0"
ROOT = Path(__file__).parents[2]


def compiled(text: str) -> str:
    return compile_configured(resolve(params_text=text).config, IMAGE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ir_is_the_golden_one(variant):
    text = compiled((GOLDEN / f"{variant}.params.yaml").read_text())
    path = GOLDEN / f"{variant}.yaml"
    if os.environ.get("RENEW_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_has_its_parameters():
    assert {path.name.split(".")[0] for path in GOLDEN.iterdir()} == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kfp_reads_both_documents_back(variant):
    component = components.load_component_from_file(str(GOLDEN / f"{variant}.yaml"))
    executors = component.component_spec.platform_spec.platforms["kubernetes"].deployment_spec.executors
    containers = component.pipeline_spec.deployment_spec["executors"].keys()
    assert set(executors) == {name for name in containers if not name.startswith("exec-importer")}


@pytest.mark.slow
def test_kfp_s_own_compiler_gives_what_ours_does(tmp_path):
    program = str(Path(sys.executable).with_name("kfp"))
    given = ["--py", "pipelines/default.py", "--output", str(tmp_path / "kfp.yaml")]
    # In the checkout, where `make images` leaves which image it has built.
    compiled_by_kfp = subprocess.run(
        [program, "dsl", "compile", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert compiled_by_kfp.returncode == 0, compiled_by_kfp.stderr
    config = resolve(params=ROOT / "params.yaml").config
    image = compiling.choose_image(None, ROOT / images.RECORD)
    assert (tmp_path / "kfp.yaml").read_text() == compile_pipeline(config.quantize.schemes, image, config.kubernetes)


@pytest.mark.slow
def test_another_process_compiles_the_same_bytes(tmp_path):
    params = GOLDEN / "kubernetes.params.yaml"
    command = [sys.executable, "-m", "pipelines.compile", "--params", str(params), "--image", IMAGE, "--output"]
    for name, seed in (("one.yaml", "1"), ("two.yaml", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, str(tmp_path / name)], check=True, cwd=ROOT, env=environment, capture_output=True)
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()
    assert (tmp_path / "one.yaml").read_text() == (GOLDEN / "kubernetes.yaml").read_text()


def test_every_component_runs_the_image_asked_for():
    ir, _ = yaml.safe_load_all(compile_pipeline(SCHEMES, IMAGE, stages=["sft", "reward", "dpo", "grpo", "index"]))
    executors = ir["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values() if "container" in executor}
    assert images == {IMAGE}
    quantized = {f"exec-quantize-{scheme}" for scheme in SCHEMES}
    others = {f"exec-{name}" for name in ({*STEPS, "record-outcome", "importer"} - {"quantize"})}
    assert set(executors) == quantized | others


def test_schemes_of_the_configuration_shape_the_graph(tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text("quantize:\n  schemes: [int4]\n")
    output = tmp_path / "build" / "pipeline.yaml"
    compiling.main(["--params", str(params), "--output", str(output)])
    ir, _ = yaml.safe_load_all(output.read_text())
    assert "comp-quantize-int4" in ir["components"] and "comp-quantize-int8" not in ir["components"]
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


def tasks_of(variant: str) -> dict[str, dict]:
    """All tasks of a golden file, by name, from every level of the graph."""
    ir, _ = yaml.safe_load_all((GOLDEN / f"{variant}.yaml").read_text())
    graphs = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    return {name: task for graph in graphs for name, task in graph["dag"]["tasks"].items()}


@pytest.mark.parametrize("variant", ["both-schemes", "parts"])
def test_what_depends_on_the_registry_or_leaves_something_outside_is_not_cached(variant):
    uncached = {name for name, task in tasks_of(variant).items() if task.get("cachingOptions") == {}}
    assert uncached - {"preprocess-part"} == {"gate", "register", "record-outcome"}
    assert ("preprocess-part" in uncached) == (variant == "parts")


def test_every_step_is_tried_again_with_growing_pauses_and_the_exit_handler_never():
    retries = {name: task.get("retryPolicy") for name, task in tasks_of("parts").items()}
    steps = {"preprocess", "preprocess-part", "train", "quantize-int8", "evaluate", "gate", "register"}
    assert {name for name, policy in retries.items() if policy} == steps
    assert retries["train"] == {
        "maxRetryCount": 2,
        "backoffDuration": "30s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "604800s",
    }
    assert {name: policy and policy["maxRetryCount"] for name, policy in all_policies("kubernetes").items()} == {
        **dict.fromkeys(["preprocess", "preprocess-part", "quantize-int8", "quantize-int4", "evaluate", "register"], 3),
        "train": 1,
        "gate": None,
        "record-outcome": None,
    }


def all_policies(variant: str) -> dict[str, dict | None]:
    groups = ("importer", "exit-handler-1", "preprocess-parts", "for-loop-2")
    return {name: task.get("retryPolicy") for name, task in tasks_of(variant).items() if name not in groups}


def test_schemes_are_quantised_side_by_side_and_what_follows_waits_for_all():
    tasks = tasks_of("both-schemes")
    quantized = ["quantize-int4", "quantize-int8"]
    for name in quantized:
        assert tasks[name]["dependentTasks"] == ["preprocess", "train"]
    for name in ("evaluate", "gate", "register"):
        assert set(quantized) <= set(tasks[name]["dependentTasks"])
    assert {"evaluate", "gate"} <= set(tasks["register"]["dependentTasks"])


def test_preprocess_waits_for_its_parts():
    tasks = tasks_of("parts")
    assert "preprocess-parts" in tasks["preprocess"]["dependentTasks"]
    assert tasks["for-loop-2"]["parameterIterator"]["items"]["raw"] == '["1/4", "2/4", "3/4", "4/4"]'


def test_importing_components_and_pipelines_loads_nothing_heavy():
    code = (
        "import sys, pipelines.local, pipelines.submit, pipelines.compile, pipelines.ava_pipeline, components\n"
        "import pipelines.kubernetes\n"
        "heavy = {'torch', 'mlflow', 'deepspeed', 'transformers', 'onnxruntime', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
