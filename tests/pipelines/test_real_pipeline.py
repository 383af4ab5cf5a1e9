"""The pipeline with the real steps, on a small text and a small model: the runner, `ava` and MLflow together."""

import json
import re
from pathlib import Path

import pytest

from pipelines import local

ASSETS = Path(__file__).parents[1] / "assets"
STEPS = ["preprocess", "train", "quantize-int8", "evaluate", "register", "record-outcome"]
OUTPUTS = {
    "preprocess": "shards",
    "train": "model",
    "quantize-int8": "quantized",
    "evaluate": "evaluation",
    "register": "registration",
}


@pytest.fixture
def run_pipeline(make_params, mlflow_server, tmp_path, monkeypatch, capfd):
    params = make_params(
        data={"sources": [{"path": "verse.txt"}], "document_separator": "\n\n"},
        register={"model_name": "ava-whole-pipeline", "gate": {"max_bits_per_byte": 9.0}},
    )
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("AVA_WORK", str(tmp_path / "work"))
    runs = tmp_path / "runs"

    def call(*flags: str) -> tuple[Path, dict[str, str], str]:
        """The run's folder, the status of each step, and what was printed."""
        code = local.main(["--params", str(params), "--data", str(ASSETS), "--runs", str(runs), *flags])
        output = capfd.readouterr().out
        assert code == 0, output
        rows = re.findall(r"^([a-z0-9-]+) +(computed|reused|failed|not run)", output, flags=re.MULTILINE)
        return max(runs.glob("ava-*")), dict(rows), output

    return call


def contents(run: Path, name: str) -> dict:
    """Bytes and SHA-256 of every file that a step has left."""
    return json.loads((run / name / OUTPUTS[name] / "manifest.json").read_text())["files"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_second_run_computes_only_register_and_has_the_same_bytes(run_pipeline, mlflow_server):
    first, statuses, output = run_pipeline()
    assert statuses == dict.fromkeys(STEPS, "computed")
    assert "ava-whole-pipeline version 1: @challenger, @champion" in output
    assert f"{mlflow_server}/#/models/ava-whole-pipeline/versions/1" in output
    assert (first / "evaluate" / "report").read_bytes().startswith(b"<!")
    assert (first / "register" / "promoted").read_text() == "true"
    assert (first / "register" / "model_version").read_text() == "1"
    outcome = json.loads((first / "record-outcome" / "outcome" / "outcome.json").read_text())
    assert outcome == {"state": "SUCCEEDED", "failed_task": None, "message": ""}

    second, statuses, output = run_pipeline()
    assert statuses == {**dict.fromkeys(STEPS, "reused"), "register": "computed", "record-outcome": "computed"}
    assert "ava-whole-pipeline version 1" in output, "registering the same evaluation again makes no second version"
    for name in STEPS[:4]:
        assert contents(first, name) == contents(second, name)

    _, statuses, _ = run_pipeline("--set", "train.learning_rate=0.001")
    assert statuses == {**dict.fromkeys(STEPS, "computed"), "preprocess": "reused"}
