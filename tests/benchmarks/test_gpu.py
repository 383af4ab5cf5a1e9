"""The check of a GPU, in small on a CPU: what it would find, and that a part which fails stops no other."""

import json
from itertools import islice, pairwise

import pytest
import torch
from safetensors.torch import save_file

from ava_core.models import experts
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import numerics, speed, training, wheels
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.plan import Outcome, Plan
from benchmarks.gpu.text import made_up


@pytest.fixture
def plan(tmp_path) -> Plan:
    return Plan(device="cpu", tiny=True, threads=1, folder=tmp_path, data=tmp_path / "no corpus")


def test_layers_agree_with_float32_on_every_route(plan):
    outcome = numerics.run(plan)
    assert outcome.verdict == "passed", outcome.faults
    assert {"mixture: top_k", "mixture: expert_choice", "attention: documents, padding", "model"} <= set(
        outcome.figures
    )


def test_an_attention_that_forgets_the_documents_is_found(plan, monkeypatch):
    right = numerics.attend
    monkeypatch.setattr(numerics, "attend", lambda q, k, v, mask: right(q, k, v, None))
    faults = " ".join(numerics.run(plan).faults)
    assert "attention: documents: error of output" in faults
    assert "attention: causal:" not in faults


def test_a_mixture_that_loses_a_gradient_is_found(plan, monkeypatch):
    class Careless(numerics.MoELayer):
        def forward(self, x, *rest):
            out, *others = super().forward(x, *rest)
            return (out if x.dtype == torch.float32 else 0.9 * out + 0.1 * out.detach()), *others

    monkeypatch.setattr(numerics, "MoELayer", Careless)
    assert any("mixture: top_k: error of gradients" in fault for fault in numerics.run(plan).faults)


def test_experts_without_a_gradient_are_found_in_a_model(plan, monkeypatch):
    combine, configured = experts.combine, numerics.configuration
    monkeypatch.setattr(experts, "combine", lambda *given: combine(*given).detach())
    monkeypatch.setattr(
        numerics, "configuration", lambda plan, **given: configured(plan, experts_implementation="looped", **given)
    )
    found = numerics.model_errors(plan)
    assert found["loss"] < numerics.MODEL_BOUNDS["loss"]
    assert found["worst gradient"] >= 1.0


def test_what_is_no_number_is_a_fault():
    outcome = Outcome()
    outcome.at_most("loss", float("nan"), 1.0)
    assert outcome.faults == ["loss = nan: must be <= 1"]
    assert numerics.relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


@pytest.mark.slow
def test_a_part_that_fails_stops_no_other_and_says_why(plan, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PARTS, "unknown there", ("nowhere:run", 1.0))
    output = tmp_path / "gpu.json"
    assert not gpu.run(plan, ["unknown there", "base compiled"], 60, output)
    found = json.loads(output.read_text())
    assert not found["passed"]
    verdicts = {name: part["verdict"] for name, part in found["parts"].items()}
    assert verdicts == {"unknown there": "failed", "base compiled": "skipped"}
    assert "KeyError: 'unknown there'" in found["parts"]["unknown there"]["log"]
    assert "failed: unknown there" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_ended(plan):
    found = gpu.run_part("kernels", plan, 0.1)
    assert found["faults"] == ["took more than 0 s: give it more --minutes"]
    assert found["seconds"] < 60


def test_what_can_not_be_run_is_refused(capsys):
    for words, told in ((["--device", "cpu"], "needs --tiny"), (["--parts", "base,speed"], "--parts = speed: must be")):
        with pytest.raises(SystemExit, match="2"):
            gpu.main(words)
        assert told in capsys.readouterr().err


def test_a_preset_that_does_not_fit_is_left_out(plan, monkeypatch):
    class Properties:
        total_memory = 24 * 2**30

    measured = []

    def measure(names, *_):
        measured.extend(names)
        return {"subjects": {}, "peak": None, "failures": {}}

    monkeypatch.setattr(speed.torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(speed, "measure", measure)
    there = Plan(device="cuda", tiny=False, threads=1, folder=plan.folder, data=plan.data)
    assert speed.large(there).skipped == "gpu/large is made for 75 GiB, this GPU has 24"
    assert speed.base_compiled(there).verdict == "passed"
    assert measured == ["ours_moepp+layers_compiled", "hf_olmoe_bf16+layers_compiled"]


def test_distance_of_weights_is_relative_and_over_all_of_them(tmp_path):
    save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, tmp_path / "one")
    save_file({"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])}, tmp_path / "two")
    assert training.weights_apart(tmp_path / "two", tmp_path / "one") == pytest.approx(0.1)


def test_made_up_text_is_the_same_each_time_and_can_be_learnt():
    first, second = next(made_up(500)), next(made_up(500))
    assert first == second
    texts = " ".join(islice(made_up(500), 8)).replace(".", "").split()
    pairs = list(pairwise(texts))
    assert len(set(pairs)) < 0.7 * len(pairs)


def test_wheels_are_those_that_are_pinned():
    assert "--hash=sha256:" in wheels.pinned("steps.txt", wheels.READY)
    assert wheels.pinned("steps-source.txt", wheels.BUILT).startswith("deepspeed==")
    with pytest.raises(SystemExit, match=r"numpyy: isn't in requirements/steps\.txt"):
        wheels.pinned("steps.txt", ["numpyy"])


@pytest.mark.slow
def test_whole_check_passes_on_a_cpu_and_a_killed_training_ends_in_the_same_bytes(tmp_path):
    output = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--tiny", "--minutes", "120", "--output", str(output), "--data", str(tmp_path)]
    assert gpu.main(words) == 0
    found = json.loads(output.read_text())
    verdicts = {name: part["verdict"] for name, part in found["parts"].items()}
    assert verdicts == {name: "skipped" if "compiled" in name else "passed" for name in PARTS}
    assert found["parts"]["resume"]["figures"]["same_bytes"]
    assert found["parts"]["training"]["figures"]["text"] == "made up"
    assert found["parts"]["base"]["figures"]["over_peer"]["ours_moepp"]["peak_bytes"] > 0
