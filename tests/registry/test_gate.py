"""`ava gate` against a real MLflow server, and what register makes of its decision."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.registry.gate import figures
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from tests.evaluation.comparison.evaluations import figures_of, losses_text, sealed

ROOT = Path(__file__).parents[3]
NOWHERE = "http://127.0.0.1:9"


def aliases(client, name):
    return client.get_registered_model(name).aliases


def test_without_a_champion_the_absolute_bound_decides(make_inputs, run_gate):
    decision, output = run_gate(make_inputs(2.0, int8=2.001))
    assert sorted(path.name for path in output.iterdir()) == ["decision.json", "gate.md"]
    record = json.loads((output / "decision.json").read_text())
    assert (record["passed"], record["champion"]) == (True, None)
    assert [(bound["bound"], bound["limit"]) for bound in record["bounds"]] == [
        ("max_bits_per_byte", 2.3),
        ("max_quantized_increase", 2.02),
    ]
    assert figures(decision) == pytest.approx(
        {"passed": 1, "bounds_checked": 2, "bounds_failed": 0, "smallest_margin": 0.019}
    )


def test_with_a_champion_the_gate_compares_with_it_and_says_by_how_much(make_inputs, run_gate, run_register):
    run_register(make_inputs(2.0))
    decision, output = run_gate(make_inputs(2.05, int8=2.06))
    assert (decision.passed, decision.champion) == (False, 1)
    assert figures(decision) == pytest.approx(
        {"passed": 0, "bounds_checked": 2, "bounds_failed": 1, "smallest_margin": -0.04}
    )
    page = (output / "gate.md").read_text()
    assert page.startswith("# Gate: refused\n\nCompared with version 1, the champion of ")
    for row in (
        "| `test_bits_per_byte` | 2.0500 | 2.0100 | 0.0400 above | `tolerance_bits_per_byte` | **failed** |",
        "| `int8_test_bits_per_byte` | 2.0600 | 2.0700 | 0.0100 below | `max_quantized_increase` | passed |",
        "1 of 2 bounds failed: `ava register` keeps it as challenger.",
    ):
        assert row in page.splitlines()


def test_gate_writes_nothing_into_the_registry(make_inputs, run_gate, client, model_name):
    run_gate(make_inputs(2.0))
    assert not client.search_registered_models(f"name = '{model_name}'")
    assert client.get_experiment_by_name(model_name) is None


def test_registry_that_nobody_has_made_has_no_champion_and_is_not_made(make_inputs, run_gate, tmp_path):
    decision, _ = run_gate(make_inputs(2.0), uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    assert decision.passed and decision.champion is None
    assert not (tmp_path / "store").exists()


def test_server_that_does_not_answer_is_one_line(make_inputs, run_gate):
    with pytest.raises(AvaError, match=r"^http://127.0.0.1:9: no MLflow server answers: start one") as caught:
        run_gate(make_inputs(2.0), uri=NOWHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_registered_evaluation_gets_the_same_decision_byte_by_byte(make_inputs, run_gate, run_register):
    run_register(make_inputs(2.0))
    inputs = make_inputs(1.9)
    _, before = run_gate(inputs)
    run_register(inputs, gate=before)
    _, after = run_gate(inputs)
    run_register(make_inputs(1.5))  # a champion that it would no longer match
    _, later = run_gate(inputs)
    assert digest_tree(before) == digest_tree(after) == digest_tree(later)


@pytest.mark.slow
def test_registration_that_was_killed_at_the_alias_is_compared_with_the_champion_before(
    make_inputs, run_gate, run_register, client, model_name
):
    run_register(make_inputs(2.0))
    inputs = make_inputs(1.9)
    run_register(inputs)
    client.delete_model_version_tag(model_name, "2", "ava.promoted")
    assert run_gate(inputs)[0].champion == 1


def test_register_promotes_what_the_gate_let_through(make_inputs, run_gate, run_register, client, model_name):
    inputs = make_inputs(2.0, int8=2.001)
    decision, folder = run_gate(inputs)
    result = run_register(inputs, gate=folder)
    assert result.metrics["promoted"] == 1.0
    assert result.record()["gate"] == {"passed": True, "champion": None}
    assert result.outcome.bounds == decision.bounds
    assert aliases(client, model_name) == {"challenger": "1", "champion": "1"}


@pytest.mark.slow
def test_refusal_stands_even_if_the_champion_is_gone_meanwhile(make_inputs, run_gate, run_register, client, model_name):
    run_register(make_inputs(2.0))
    inputs = make_inputs(2.05)
    decision, folder = run_gate(inputs)
    client.delete_registered_model_alias(model_name, "champion")
    result = run_register(inputs, gate=folder)
    assert result.metrics == {"promoted": 0.0, "model_version": 2.0}
    assert (result.outcome.bounds, result.outcome.previous) == (decision.bounds, 1)
    assert aliases(client, model_name) == {"challenger": "2"}


@pytest.mark.slow
def test_champion_that_changed_since_the_gate_is_compared_with_again(
    make_inputs, run_gate, run_register, client, model_name, caplog, monkeypatch
):
    run_register(make_inputs(2.0))
    inputs = make_inputs(2.005)
    decision, folder = run_gate(inputs)
    assert decision.passed
    run_register(make_inputs(1.9))
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    result = run_register(inputs, gate=folder)
    assert result.metrics == {"promoted": 0.0, "model_version": 3.0}
    assert aliases(client, model_name)["champion"] == "2"
    record = result.record()
    assert (record["gate"], record["previous_champion"]) == ({"passed": True, "champion": 1}, 2)
    assert "had let it through against version 1; what counts is the decision at the promotion, against version 2" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"evaluation": "0" * 64}, "another evaluation"),
        ({"model_name": "elsewhere"}, "the registered model elsewhere"),
        ({"gate": "0" * 64}, "other bounds"),
    ],
)
def test_decision_about_something_else_is_refused_before_the_server_is_asked(
    make_inputs, run_gate, run_register, changes, fault
):
    inputs = make_inputs(2.0)
    _, folder = run_gate(inputs)
    path = folder / "decision.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(AvaError, match=f"decision.json: is about {fault}: run `ava gate`"):
        run_register(inputs, uri=NOWHERE, gate=folder)


def test_decision_at_other_bounds_than_those_of_the_parameters_is_refused(make_inputs, run_gate, run_register):
    inputs = make_inputs(2.4)
    _, folder = run_gate(inputs, bounds={"max_bits_per_byte": {"at_most": 9.0}})
    with pytest.raises(AvaError, match="is about other bounds"):
        run_register(inputs, uri=NOWHERE, gate=folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"bounds": 3}', "[]"])
def test_broken_decision_is_refused_by_name(make_inputs, run_gate, run_register, text):
    inputs = make_inputs(2.0)
    _, folder = run_gate(inputs)
    (folder / "decision.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"decision.json: can't be read .*: run `ava gate` again"):
        run_register(inputs, uri=NOWHERE, gate=folder)


@pytest.mark.parametrize(("bits_per_byte", "passed"), [(2.0, "true"), (2.4, "false")])
def test_command_ends_green_either_way_and_tells_kubeflow(make_inputs, tmp_path, bits_per_byte, passed):
    from kfp.local import executor_output_utils

    inputs = make_inputs(bits_per_byte)
    exports = {name: tmp_path / "kfp" / name for name in ("passed", "summary", "executor-output")}
    flags = {"model": inputs.model, "evaluation": inputs.evaluation, "output": tmp_path / "out", **exports}
    command = [sys.executable, "-m", "ava_core.cli.main", "gate", "--work", str(tmp_path / "work")]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_"))}
    environment["AVA_TRACKING_URI"] = f"sqlite:///{tmp_path / 'none.db'}"
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert exports["passed"].read_text() == passed
    assert exports["summary"].read_bytes() == (tmp_path / "out" / "gate.md").read_bytes()
    listed = executor_output_utils.load_executor_output(str(exports["executor-output"])).artifacts
    assert set(listed) == {"gate", "summary", "metrics"}
    assert dict(listed["metrics"].artifacts[0].metadata.items())["passed"] == (passed == "true")


@pytest.mark.slow
def test_significance_is_judged_by_the_losses_that_the_champion_was_registered_with(
    make_inputs, run_gate, run_register, caplog
):
    bounds = {
        "tolerance_bits_per_byte": {"enabled": False},
        "not_worse": {"figure": "test_bits_per_byte", "at_most": "champion", "significance": 0.05},
    }

    def inputs(effect):
        made = make_inputs()
        text = losses_text(effect)
        (made.evaluation / "losses.jsonl").write_text(text)
        figures = figures_of(text)["float"]
        (made.evaluation / "metrics.json").write_text(json.dumps(figures))
        sealed(made.evaluation, {"model": manifest.read(made.model).digest})
        return made

    assert run_register(inputs(0.0), bounds=bounds).promoted
    slightly, much = inputs(0.0004), inputs(0.01)
    decision, output = run_gate(slightly, bounds=bounds)
    assert decision.passed
    assert decision.bounds[0].low < 0 < decision.bounds[0].value - decision.bounds[0].limit < decision.bounds[0].high
    assert f"| {decision.bounds[0].interval} | `not_worse` | passed |" in (output / "gate.md").read_text()
    assert not run_gate(much, bounds=bounds)[0].passed
    assert not run_register(much, bounds=bounds).promoted
    assert run_register(slightly, bounds=bounds).promoted
    assert "without significance" not in caplog.text


def test_champion_of_an_older_ava_is_compared_plainly_with_a_line(make_inputs, run_gate, run_register, caplog):
    bounds = {"not_worse": {"figure": "test_bits_per_byte", "at_most": "champion", "significance": 0.05}}
    run_register(make_inputs(2.0))
    caplog.set_level(logging.WARNING)
    decision, _ = run_gate(make_inputs(2.005), bounds=bounds)
    assert [bound.passed for bound in decision.bounds if bound.bound == "not_worse"] == [False]
    assert "gate: not_worse: " in caplog.text
    assert "keeps no losses by document" in caplog.text
