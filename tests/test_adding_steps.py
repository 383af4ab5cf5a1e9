"""A step is added in four files and a scheme of quantisation in two, as CONTRIBUTING.md says, and both run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SPEC = """        StepSpec(
            name="copycat",
            summary="Copy a model.",
            output="copied",
            kind=MODEL,
            sections=("seed",),
            function="ava_core.models.copycat:copy",
            inputs=(MODEL_IN,),
            metrics=("files",),
        ),
"""
FUNCTION = '''"""For this test: copies of models."""

import shutil


def copy(model, output):
    """The figures of a copy of a model."""
    names = [path.name for path in model.iterdir() if path.name not in ("manifest.json", "metrics.json")]
    for name in names:
        shutil.copy(model / name, output / name)
    return {"files": len(names)}
'''
COMMAND = '''"""`ava copycat`."""

from ava_core.cli.step_command import step_command


def _compute(run):
    from ava_core.models.copycat import copy

    run.metrics.update(copy(run.input("model"), run.output))


command = step_command("copycat", _compute)
'''
TRAINED = """            model = run("train", {**every, "shards": shards, **begun}).outputs["model"]
"""
COPIED = """            model = run("copycat", {**every, "model": model}).outputs["copied"]
"""
SCHEME = """        Scheme(name="int8_16", bits=8, experts=(8,), others=(16,)),
"""


class Checkout:
    """A copy of the code, with a step and a scheme more."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place

    def edit(self, name: str, before: str, after: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))

    def run(self, *command: object) -> str:
        """Standard output of a Python program that runs the copy's code."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            cwd=self.place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ava(self, *flags: object) -> str:
        program = (
            "import sys\nfrom ava_core.cli import checkout, main\n"
            "checkout.refuse_copied_environment = lambda *_: None\n"  # for this is a copy
            "sys.argv[0] = 'ava'\nmain.main()\n"
        )
        return self.run("-c", program, *flags)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "copy"
    for name in ("ava_core", "components", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "configs").symlink_to(ROOT / "configs")
    place = tmp_path / "place"
    place.mkdir()
    checkout = Checkout(folder, place)
    before = '        StepSpec(\n            name="quantize",'
    checkout.edit("ava_core/steps/table.py", before, f"{SPEC}{before}")
    (folder / "ava_core/models/copycat.py").write_text(FUNCTION)
    (folder / "ava_core/cli/copycat.py").write_text(COMMAND)
    checkout.edit("pipelines/ava_pipeline.py", TRAINED, f"{TRAINED}{COPIED}")
    before = '        Scheme(name="int4"'
    checkout.edit("ava_core/steps/schemes.py", before, f"{SCHEME}{before}")
    before = "    int4: Int4Config = Int4Config()\n"
    checkout.edit("ava_core/config/quantize.py", before, f"    int8_16: Int8Config = Int8Config()\n{before}")
    return checkout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_step_and_a_scheme_are_run_by_the_shell_and_stand_in_the_pipeline_and_in_dvc_yaml(
    checkout, tiny_model, tiny_shards, make_params
):
    params = make_params(quantize={"schemes": ["int8_16"]}, kubernetes={"steps": {"copycat": {"memory_limit": "1Gi"}}})
    place = checkout.place
    told = " ".join(checkout.ava("copycat", "--help").split())
    makers = ("train", "sft", "align --method dpo", "align --method grpo", "copycat", "import")
    assert f"Output folder of {' or '.join(f'`ava {maker}`' for maker in makers)}" in told
    common = ["--params", params, "--work", place / "work", "--quiet"]
    checkout.ava("copycat", *common, "--model", tiny_model, "--output", place / "copied")
    given = ["--model", place / "copied", "--shards", tiny_shards]
    checkout.ava("quantize", *common, *given, "--scheme", "int8_16", "--output", place / "quantized")
    checkout.ava("evaluate", *common, *given, "--quantized", place / "quantized", "--output", place / "evaluation")
    assert json.loads((place / "copied" / "manifest.json").read_text())["step"] == "copycat"
    assert "int8_16_test_bits_per_byte" in json.loads((place / "evaluation" / "metrics.json").read_text())
    stored = json.loads((place / "quantized" / "quantization.json").read_text())
    assert stored["scheme"] == "int8_16"

    checkout.run("-m", "pipelines.compile", "--params", params, "--output", place / "pipeline.yaml")
    ir, _ = yaml.safe_load_all((place / "pipeline.yaml").read_text())
    tasks = ir["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    for name in ("quantize-int8-16", "evaluate", "gate", "register"):
        read = tasks[name]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]
        assert read == {"outputArtifactKey": "copied", "producerTask": "copycat"}
    assert "quantized_int8_16" in tasks["register"]["inputs"]["artifacts"]
    container = ir["deploymentSpec"]["executors"]["exec-copycat"]["container"]
    assert container["resources"]["resourceMemoryLimit"] == "1Gi"

    (place / "params.yaml").write_text("seed: 1\n")
    checkout.run("-m", "pipelines.stages", "--params", place / "params.yaml", "--output", place / "dvc.yaml")
    stages = yaml.safe_load((place / "dvc.yaml").read_text())["stages"]
    assert stages["copycat"]["deps"] == ["outputs/model", "outputs/keys/copycat.json"]
    assert "outputs/copied" in stages["evaluate"]["deps"]
