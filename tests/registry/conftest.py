"""Evaluated models to register: a really trained model, and the figures that a test wants it to have."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ava_core.config.schema import AvaConfig
from ava_core.progress import Progress
from ava_core.registry.gate import gate as decide
from ava_core.registry.gates.decision import Decision
from ava_core.registry.register import register
from ava_core.registry.registration import Registration
from ava_core.runtime import manifest

COMMIT = "c" * 40


def finished(folder: Path, step: str, inputs: dict[str, str], choices: dict[str, str] | None = None) -> Path:
    """Give a folder the manifest that makes it a step's finished output."""
    contents = manifest.Manifest(
        step=step,
        key=f"test-{step}",
        version="0",
        code="0",
        config="0",
        choices=choices or {},
        inputs=inputs,
        threads=1,
        ranks=1,
        files=manifest.describe_files(folder),
    )
    manifest.write(folder, contents)
    return folder


@dataclass
class Inputs:
    """The folders that `ava register` takes."""

    model: Path
    evaluation: Path
    quantized: list[Path] = field(default_factory=list)


def write_evaluation(folder: Path, model: Path, quantized: list[Path], figures: dict[str, float]) -> Path:
    """A folder as `ava evaluate` leaves it, with these figures."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(figures))
    (folder / "report.html").write_text("<!doctype html><title>report</title><p>a report</p>")
    samples = [{"model": "float", "strategy": "greedy", "prompt": "To be, or", "text": "To be, or not"}]
    record = {"figures": {"float": figures}, "layers": [], "samples": samples}
    (folder / "evaluation.json").write_text(json.dumps(record))
    inputs = {"model": manifest.read(model).digest}
    inputs.update({f"quantized.{i}": manifest.read(path).digest for i, path in enumerate(quantized)})
    return finished(folder, "evaluate", inputs)


def write_quantized(folder: Path, model: Path, scheme: str) -> Path:
    """A folder that is registered as it is; its network is never run by these tests."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"stands for a network")
    (folder / "quantization.json").write_text(json.dumps({"scheme": scheme, "block_size": 32}))
    (folder / "metrics.json").write_text(json.dumps({"model_bytes": 20, "compression_ratio": 3.5}))
    return finished(folder, "quantize", {"model": manifest.read(model).digest}, {"scheme": scheme})


def write_inputs(folder: Path, model: Path, bits_per_byte: float, int8: float | None, key: str) -> Inputs:
    """The folders of a model that scores `bits_per_byte`; `key` tells evaluations of different tests apart."""
    folder.mkdir()
    figures = {"test_bits_per_byte": bits_per_byte, "test_perplexity": 20.0, f"key_{key}": 0.0}
    quantized = []
    if int8 is not None:
        quantized = [write_quantized(folder / "int8", model, "int8")]
        figures["int8_test_bits_per_byte"] = int8
    return Inputs(model, write_evaluation(folder / "evaluation", model, quantized, figures), quantized)


def configure(name: str, bounds: dict[str, Any]) -> AvaConfig:
    """The configuration of a registered model with these bounds at the gate."""
    return AvaConfig.model_validate({"register": {"model_name": name, "experiment": name, "gate": bounds}})


def call_register(
    inputs: Inputs, output: Path, uri: str, name: str, bounds: dict[str, Any], gate: Path | None = None
) -> Registration:
    """Call `register` as `ava register` does."""
    output.mkdir()
    config = configure(name, bounds)
    return register(
        config=config.registry,
        resolved_config=config.model_dump(mode="json", by_alias=True),
        model=inputs.model,
        quantized=inputs.quantized,
        evaluation=inputs.evaluation,
        gate=gate,
        output=output,
        digests={"evaluation": manifest.read(inputs.evaluation).digest},
        tracking_uri=uri,
        git_commit=COMMIT,
        progress=Progress(quiet=True),
    )


@dataclass
class Registered:
    """A champion that several tests look at: its inputs, what `register` returned, and the output folder."""

    inputs: Inputs
    result: Registration
    output: Path


@pytest.fixture(scope="session")
def registered(tmp_path_factory, tiny_model, mlflow_server) -> Registered:
    """One registration, to be read only."""
    folder = tmp_path_factory.mktemp("registered")
    inputs = write_inputs(folder / "outputs", tiny_model, 2.0, 2.001, folder.name)
    output = folder / "registration"
    return Registered(inputs, call_register(inputs, output, mlflow_server, f"shared-{folder.name}", {}), output)


@pytest.fixture
def model_name(request) -> str:
    """A registered model of this test's own; the server is shared."""
    return "m-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:100]


@pytest.fixture
def make_inputs(tmp_path, tiny_model, model_name) -> Callable[..., Inputs]:
    """Make the folders of an evaluated model that scores `bits_per_byte`; `int8` is the quantised model's score."""
    made = 0

    def make(bits_per_byte: float = 2.0, int8: float | None = None) -> Inputs:
        nonlocal made
        made += 1
        return write_inputs(tmp_path / f"outputs{made}", tiny_model, bits_per_byte, int8, model_name)

    return make


@pytest.fixture
def run_register(tmp_path, mlflow_server, model_name) -> Callable[..., Registration]:
    """Register inputs under this test's name; the n-th call writes to `tmp_path/registration<n>`."""

    def call(
        inputs: Inputs, uri: str | None = None, bounds: dict[str, Any] | None = None, gate: Path | None = None
    ) -> Registration:
        output = tmp_path / f"registration{len(list(tmp_path.glob('registration*'))) + 1}"
        return call_register(inputs, output, uri or mlflow_server, model_name, bounds or {}, gate)

    return call


@pytest.fixture
def run_gate(tmp_path, mlflow_server, model_name) -> Callable[..., tuple[Decision, Path]]:
    """Ask the gate about inputs under this test's name: the decision, and the folder with it."""

    def call(inputs: Inputs, uri: str | None = None, bounds: dict[str, Any] | None = None) -> tuple[Decision, Path]:
        output = tmp_path / f"gate{len(list(tmp_path.glob('gate*'))) + 1}"
        output.mkdir()
        decision = decide(
            config=configure(model_name, bounds or {}).registry,
            model=inputs.model,
            quantized=inputs.quantized,
            evaluation=inputs.evaluation,
            output=output,
            digests={"evaluation": manifest.read(inputs.evaluation).digest},
            tracking_uri=uri or mlflow_server,
            progress=Progress(quiet=True),
        )
        return decision, output

    return call


@pytest.fixture
def client(mlflow_server) -> Any:
    """MLflow's own client, to look at what was written."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server, mlflow_server)


@pytest.fixture(autouse=True)
def _no_given_run(monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "AVA_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def copy_of(tmp_path) -> Callable[[Path], Path]:
    """A copy of a folder that a test may spoil."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy
