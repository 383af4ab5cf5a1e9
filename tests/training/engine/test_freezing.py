"""Frozen parameters and rates by layer: the same on several ranks and at every ZeRO stage; nothing is kept for them."""

import pytest
import torch

from ava_core.distributed.ranks import Ranks
from tests.training.engine.rank_runs import build_engine, on_ranks, settings, tiny, train, windows

CHOSEN = {
    "freeze": ["embed*", "layers.0.*"],
    "learning_rate_decay_by_layer": 0.5,
    "learning_rate_groups": [{"pattern": "*.moe.gate.*", "multiplier": 0.5}],
}


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "precision"), [("muon", "fp32"), ("adamw", "bf16")])
def test_two_ranks_at_every_stage_train_what_one_rank_trains(tmp_path, optimizer, precision):
    fields = {**CHOSEN, "optimizer": optimizer, "precision": precision}
    reference = train(settings(**fields), Ranks())
    frozen = {name for name, _ in tiny().named_parameters() if "embed" in name or "layers.0." in name}
    assert not frozen & reference["state"].keys()
    bound = 3e-3 if precision == "bf16" else 2e-4
    cases = {str(stage): {**fields, "zero_stage": stage} for stage in range(4)}
    first, second = on_ranks(2, tmp_path, cases)
    for case in cases:
        assert first[case]["losses"] == pytest.approx(reference["losses"], abs=bound)
        assert first[case]["validation"] == pytest.approx(reference["validation"], abs=bound)
        assert first[case]["state"].keys() == reference["state"].keys()
        for name, value in first[case]["state"].items():
            assert value.equal(second[case]["state"][name])
            assert (value - reference["state"][name]).abs().mean() <= 5 * bound, name


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor", "sophia"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimiser_keeps_nothing_for_frozen_parameters_and_they_stay(optimizer, precision):
    model = tiny()
    engine = build_engine(model, settings(**CHOSEN, optimizer=optimizer, precision=precision), Ranks())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    for step in range(2):
        engine.accumulate(windows(step))
        engine.update(1.0)
    parameters = dict(model.named_parameters())
    known = {id(p) for group in engine.optimizer.param_groups for p in group["params"]}
    assert before and all(parameters[name].equal(value) for name, value in before.items())
    assert all(id(parameters[name]) not in known and parameters[name].grad is None for name in before)
    assert {id(p) for p in engine.optimizer.state} <= known == {id(p) for p in parameters.values() if p.requires_grad}


def test_gradient_surgery_and_recomputation_work_beside_frozen_layers():
    fields = {**CHOSEN, "gradient_surgery": True, "gradient_checkpointing": True}
    result = train(settings(**fields), Ranks())
    assert result["losses"][-1] < result["losses"][0]


def test_rates_of_the_groups_are_multiples_of_what_they_would_be():
    model = tiny()
    engine = build_engine(model, settings(**CHOSEN, optimizer="adamw"), Ranks())
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in engine.optimizer.param_groups for p in group["params"]}
    assert rates["model.norm.weight"] == pytest.approx(0.01)
    assert rates["model.layers.1.self_attn.q_proj.weight"] == pytest.approx(0.005)
    assert rates["model.layers.1.moe.gate.weight"] == pytest.approx(0.0025)
    assert torch.isfinite(torch.tensor(list(rates.values()))).all()
