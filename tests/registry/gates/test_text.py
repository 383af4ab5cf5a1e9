"""Figures of two texts aren't compared: the gate refuses, and says how they become comparable."""

import json
import logging
from pathlib import Path

import pytest

from ava_core.config.register import RegisterConfig
from ava_core.registry.candidate import Candidate
from ava_core.registry.gates import decision as gates
from ava_core.registry.gates.decision import NAME, Decision, read_decision
from ava_core.registry.gates.page import to_markdown
from ava_core.registry.versions import MODEL, TEXT, Version
from tests.registry.conftest import finished

CONFIG = RegisterConfig()


def decide(config: RegisterConfig, candidate: Candidate, champion: Version) -> Decision:
    """Without losses by document, which no bound here asks for."""
    return gates.decide(config, candidate, champion, lambda version: pytest.fail("losses were fetched"))


def candidate(text: str, bits: float = 2.0, model: str = "ours", int8: float | None = None) -> Candidate:
    figures = {"test_bits_per_byte": bits, **({} if int8 is None else {"int8_test_bits_per_byte": int8})}
    return Candidate(
        model=Path("model"),
        quantized={} if int8 is None else {"int8": Path("int8")},
        evaluation=Path("evaluation"),
        digest="e" * 64,
        model_digest=model,
        shards_digest="s" * 64,
        origin=None,
        figures=figures,
        corpus={"test_bytes": 100.0},
        text=text,
        manifests={},
    )


def champion(text: str | None, bits: float = 2.0, size: float = 100.0) -> Version:
    figures = {"test_bits_per_byte": bits, "test_bytes": size}
    tags = {MODEL: "theirs", **({} if text is None else {TEXT: text})}
    return Version(version=3, aliases=("champion",), figures=figures, headlines=figures, run_id=None, tags=tags)


def test_same_text_is_compared_whatever_the_shards():
    assert decide(CONFIG, candidate("t", 2.005), champion("t")).passed
    assert not decide(CONFIG, candidate("t", 2.5), champion("t")).passed


def test_another_text_is_refused_even_with_a_better_figure_and_the_other_bounds_are_held(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    decision = decide(CONFIG, candidate("t", 1.0, int8=1.5), champion("other"))
    assert not decision.passed and decision.other_text and decision.champion == 3
    assert [(bound.bound, bound.passed) for bound in decision.bounds] == [("max_quantized_increase", False)]
    assert "version 3, the champion, was measured on another text" in caplog.text
    assert "--set register.gate.tolerance_bits_per_byte.enabled=false" in caplog.text
    assert "measured on another text" in to_markdown(decision) and "# Gate: refused" in to_markdown(decision)


def test_champions_own_model_takes_its_place_on_another_text():
    decision = decide(CONFIG, candidate("t", 9.0, model="theirs"), champion("other"))
    assert decision.passed and not decision.other_text


def test_without_a_bound_relative_to_the_champion_texts_may_differ():
    config = RegisterConfig.model_validate({"gate": {"tolerance_bits_per_byte": {"enabled": False}}})
    assert decide(config, candidate("t", 9.0), champion("other")).passed


@pytest.mark.parametrize(("ours", "theirs"), [("", "other"), ("t", None)])
def test_where_one_doesn_t_say_its_text_sizes_are_compared_with_a_warning(ours, theirs, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ava_core"), "propagate", True)
    assert decide(CONFIG, candidate(ours), champion(theirs)).passed and not caplog.records
    assert decide(CONFIG, candidate(ours), champion(theirs, size=5.0)).passed
    assert "comparing the two means little" in caplog.text


def test_refusal_is_read_again_as_one(tmp_path):
    decision = decide(CONFIG, candidate("t"), champion("other"))
    (tmp_path / NAME).write_text(json.dumps(decision.record()))
    assert read_decision(tmp_path, CONFIG, candidate("t")) == decision


def on_text(inputs, size: int):
    """The same evaluation, which says that it scored a text of `size` bytes."""
    path = inputs.evaluation / "evaluation.json"
    protocol = {"bytes": size, "documents": 1}
    record = {**json.loads(path.read_text()), "protocol": protocol, "references": {"bz2_bits_per_byte": 2.0}}
    path.write_text(json.dumps(record))
    digests = json.loads((inputs.evaluation / "manifest.json").read_text())["inputs"]
    finished(inputs.evaluation, "evaluate", digests)
    return inputs


@pytest.mark.slow
def test_champion_measured_anew_makes_a_refused_model_comparable(make_inputs, run_register, copy_of):
    assert run_register(on_text(make_inputs(2.0), 10)).promoted
    other = make_inputs(1.0)
    other.model = copy_of(other.model)
    (other.model / "history.jsonl").write_text("")
    finished(other.model, "train", {"shards": "0" * 64})
    evaluated = json.loads((other.evaluation / "manifest.json").read_text())["inputs"]
    evaluated["model"] = _digest(other.model)
    finished(other.evaluation, "evaluate", evaluated)
    assert not run_register(on_text(other, 20)).promoted
    assert run_register(on_text(make_inputs(1.5), 20)).promoted
    assert run_register(other).promoted


def _digest(folder: Path) -> str:
    from ava_core.runtime import manifest

    return manifest.read(folder).digest
