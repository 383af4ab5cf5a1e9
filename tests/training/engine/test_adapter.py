"""An adapter is trained alike on several ranks and at the ZeRO stages that can; with surgery and recomputation."""

import pytest

from ava_core.adapters.layers import is_update
from ava_core.distributed.ranks import Ranks
from tests.training.engine.rank_runs import build_engine, on_ranks, settings, tiny, train, windows

LORA = {"init": "parent", "adapter": {"kind": "lora", "rank": 2, "targets": ["attention", "experts", "router"]}}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_at_every_stage_train_what_one_rank_trains(tmp_path, precision):
    fields = {**LORA, "precision": precision}
    reference = train(settings(**fields), Ranks())
    assert {name for name in reference["state"] if not is_update(name)} == {
        f"model.layers.{layer}.moe.router.expert_bias" for layer in (0, 1)
    }
    bound = 5e-3 if precision == "bf16" else 2e-4
    first, second = on_ranks(2, tmp_path, {str(stage): {**fields, "zero_stage": stage} for stage in range(3)})
    for case, result in first.items():
        assert result["losses"] == pytest.approx(reference["losses"], abs=bound)
        assert result["validation"] == pytest.approx(reference["validation"], abs=bound)
        assert all(value.equal(second[case]["state"][name]) for name, value in result["state"].items())


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"gradient_surgery": True}])
def test_recomputation_and_surgery_work_beside_an_adapter(changes):
    plain, changed = (train(settings(**LORA, **fields), Ranks()) for fields in ({}, changes))
    assert changed["losses"][-1] < changed["losses"][0]
    if "gradient_checkpointing" in changes:
        assert changed["losses"] == plain["losses"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_have_neither_gradient_nor_state_nor_master(precision):
    model = tiny()
    engine = build_engine(model, settings(**LORA, precision=precision), Ranks())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not is_update(name)}
    for step in range(2):
        engine.accumulate(windows(step))
        engine.update(1.0)
    parameters = dict(model.named_parameters())
    assert all(parameters[name].equal(value) and parameters[name].grad is None for name, value in before.items())
    assert {id(p) for p in engine.optimizer.state} == {id(p) for name, p in parameters.items() if is_update(name)}
