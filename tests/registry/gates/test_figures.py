"""Any figure of an evaluation can be bounded, for all of them are on the version that it is compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.errors import AvaError
from ava_core.registry import list_versions
from ava_core.registry.candidate import read_candidate
from ava_core.registry.versions import FIGURES
from tests.registry.conftest import Inputs, write_evaluation

ROOT = Path(__file__).parents[3]
MYSQL_TEXT = 65_535
"""Bytes of a tag's value in the database with the narrowest column that MLflow runs on."""
NEVER_WORSE = {"mine": {"figure": "reading_score", "at_least": "champion", "tolerance": 0.1}}


@pytest.fixture
def make_measured(tmp_path, tiny_model, model_name):
    """Folders of a model with these figures beside the usual ones."""
    made = 0

    def make(**figures: float) -> Inputs:
        nonlocal made
        made += 1
        usual = {"test_bits_per_byte": 2.0, f"key_{model_name}": float(made)}
        folder = tmp_path / f"measured{made}"
        return Inputs(tiny_model, write_evaluation(folder, tiny_model, [], {**usual, **figures}))

    return make


def test_every_figure_is_on_the_version_and_outlives_the_run(
    make_inputs, run_register, client, model_name, mlflow_server
):
    inputs = make_inputs(2.0, int8=2.001)
    result = run_register(inputs)
    client.delete_run(result.run_id)
    candidate = read_candidate(inputs.model, inputs.quantized, inputs.evaluation)
    (version,) = list_versions(model_name, mlflow_server)
    assert version.figures == {**candidate.figures, **candidate.corpus}
    assert {"int8_compression_ratio", "validation_loss", "test_perplexity", "train_bytes"} <= set(version.figures)
    few = {"test_bits_per_byte", "int8_test_bits_per_byte", "test_perplexity", "parameters", "test_bytes"}
    assert set(version.headlines) == few


@pytest.mark.slow
def test_bound_on_a_new_figure_compares_with_the_champions(make_measured, run_gate, run_register):
    run_register(make_measured(reading_score=0.8))
    assert run_gate(make_measured(reading_score=0.71), bounds=NEVER_WORSE)[0].passed
    decision, folder = run_gate(make_measured(reading_score=0.69), bounds=NEVER_WORSE)
    assert [str(bound) for bound in decision.failed] == [
        "reading_score 0.6900, at least 0.7000 (mine): fails by 0.0100"
    ]
    record = json.loads((folder / "decision.json").read_text())["bounds"][-1]
    assert (record["figure"], record["at_least"], record["passed"]) == ("reading_score", True, False)
    result = run_register(make_measured(reading_score=0.69), bounds=NEVER_WORSE, gate=None)
    assert result.metrics["promoted"] == 0.0


def test_bounded_figure_has_a_tag_of_its_own(make_measured, run_register, client, model_name):
    run_register(make_measured(reading_score=0.8), bounds=NEVER_WORSE)
    assert client.get_model_version(model_name, "1").tags["reading_score"] == "0.8"


@pytest.mark.slow
def test_figure_that_the_champion_was_not_measured_in_stops_with_the_ways_out(make_measured, run_gate, run_register):
    run_register(make_measured())
    newer = make_measured(reading_score=0.8)
    with pytest.raises(AvaError, match=r"the present champion has no reading_score, .*gate\.mine\.enabled=false"):
        run_gate(newer, bounds=NEVER_WORSE)
    assert run_gate(newer, bounds={"mine": {**NEVER_WORSE["mine"], "enabled": False}})[0].passed


def test_a_tag_that_somebody_sets_does_not_move_the_limit(make_measured, run_gate, run_register, client, model_name):
    run_register(make_measured())
    client.set_model_version_tag(model_name, "1", "test_bits_per_byte", "9.0")
    decision, _ = run_gate(make_measured())
    assert decision.bounds[0].limit == pytest.approx(2.01)


@pytest.mark.slow
def test_a_thousand_figures_with_long_names_fit_every_database(
    make_measured, run_register, client, model_name, mlflow_server
):
    many = {f"tasks_of_a_large_suite_by_subject_{index:04}_accuracy": index / 7 for index in range(900)}
    run_register(make_measured(**many))
    (version,) = list_versions(model_name, mlflow_server)
    assert many.items() <= version.figures.items()
    assert len(client.get_model_version(model_name, "1").tags[FIGURES].encode()) < MYSQL_TEXT


def test_a_line_in_params_yaml_is_all_that_a_bound_takes(make_measured, tmp_path):
    lines = (ROOT / "params.yaml").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  gate:")) + 1
    lines.insert(first, "    reading: {figure: reading_score, at_least: 0.9}")
    params, output, inputs = tmp_path / "params.yaml", tmp_path / "out", make_measured(reading_score=0.8)
    params.write_text("\n".join(lines))
    command = [sys.executable, "-m", "ava_core.cli.main", "gate", "--work", str(tmp_path / "work")]
    flags = {"params": params, "model": inputs.model, "evaluation": inputs.evaluation, "output": output}
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_"))}
    environment["AVA_TRACKING_URI"] = f"sqlite:///{tmp_path / 'none.db'}"
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    row = "| `reading_score` | 0.8000 | at least 0.9000 | 0.1000 below | `reading` | **failed** |"
    assert row in (output / "gate.md").read_text().splitlines()
    assert json.loads((output / "metrics.json").read_text())["bounds_failed"] == 1
