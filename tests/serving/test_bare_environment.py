"""A registered version runs in an environment of its own requirements alone."""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ava_core.config.schema import GenerationConfig
from ava_core.generation import generate, load_model
from tests.registry.conftest import Inputs, call_register, write_evaluation


def bare_environment(folder: Path, lines: list[str]) -> Path:
    """A virtual environment of what these requirements ask for and no more, linked from this one; its interpreter."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for package in closure(lines):
        for file in package.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:  # programs, and what is compiled anew
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(package.locate_file(file))
    return folder / "bin" / "python"


def closure(lines: list[str]) -> list[Distribution]:
    """The installed packages that an installer would take for these requirements."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower().replace("_", "-"), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        package = found.setdefault(key[0], distribution(wanted.name))
        assert wanted.specifier.contains(package.version, prereleases=True), f"{wanted}: {package.version} is here"
        for inner in map(Requirement, package.requires or ()):
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return list(found.values())


PREDICT = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
ready = "torch" in sys.modules  # before the first request, which a server answers within a minute or not at all
texts = {weights: model.predict(json.loads(sys.argv[2]), params={"max_new_tokens": 12, "weights": weights})
         for weights in ("int8", "float")}
import ava_core
print(json.dumps({"texts": texts, "code": ava_core.__file__, "ready": ready}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_version_predicts_in_an_environment_of_its_own_requirements_alone(tmp_path, tiny_model, int8_model):
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    figures = {"test_bits_per_byte": 2.0, "int8_test_bits_per_byte": 2.001, "key_bare": 0.0}
    evaluation = write_evaluation(tmp_path / "evaluation", tiny_model, [int8_model], figures)
    call_register(Inputs(tiny_model, evaluation, [int8_model]), tmp_path / "registration", uri, "bare", {})
    (listed,) = (tmp_path / "store" / "artifacts").rglob("requirements.txt")
    python = bare_environment(tmp_path / "environment", listed.read_text().splitlines())
    prompts = ["To be, or", "Ça, <|endoftext|> 愛"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AVA", "PYTHON"))}
    absent = subprocess.run(
        [python, "-c", "import omegaconf"], cwd=tmp_path, env=kept, capture_output=True, check=False
    )
    assert b"No module named 'omegaconf'" in absent.stderr
    command = [python, "-c", PREDICT, "models:/bare@champion", json.dumps(prompts)]
    environment = {**kept, "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    settings = GenerationConfig(max_new_tokens=12)
    for weights, folder in (("int8", int8_model), ("float", tiny_model)):
        expected = generate(*load_model(folder), prompts, strategy="greedy", settings=settings, seed=0)
        assert result["texts"][weights] == expected
    assert f"{os.sep}code{os.sep}ava_core.zip{os.sep}" in result["code"]
    assert result["ready"]
