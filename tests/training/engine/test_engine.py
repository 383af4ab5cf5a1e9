"""The engine on one rank, without ZeRO."""

import math

import numpy as np
import pytest
import torch

from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training.pretraining import window_batch
from tests.training.engine.rank_runs import LENGTH, TrainingEngine, build_engine, settings, tiny, windows


def build(model: dict | None = None, **overrides) -> TrainingEngine:
    return build_engine(tiny(**(model or {})), settings(**overrides), Ranks())


def gradients(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in engine.model.named_parameters() if p.grad is not None}


def copies(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine.exact_state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_give_the_gradient_and_the_figures_of_one_batch(precision):
    # No router losses: those of a batch aren't the mean of those of its parts.
    model = {"balance_loss_weight": 0.0, "router_z_loss_weight": 0.0, "router": "top_k"}
    whole, cut = (build(model, precision=precision, micro_batch_size=size) for size in (8, 2))
    figures = [engine.accumulate(windows(0)) for engine in (whole, cut)]
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    for name in ("train_loss", "router_z_loss", "ffn_experts_per_token"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=tolerance)
    reference = gradients(whole)
    for name, value in gradients(cut).items():
        scale = reference[name].float().abs().max()
        assert (value - reference[name]).abs().max() <= tolerance * scale
    assert whole.gradient_norm() == pytest.approx(cut.gradient_norm(), rel=tolerance)


def test_shorter_sequences_are_passed_in_as_many_tokens_at_once():
    engine = build()
    rows = []
    engine.model.model.register_forward_hook(lambda *a, **k: rows.append(tuple(a[-1].last_hidden_state.shape[:2])))
    engine.accumulate(windows(0))
    engine.discard()
    short = windows(0).input_ids.numpy().reshape(32, LENGTH // 4)
    engine.accumulate(window_batch(np.concatenate([short, short[:, :1]], axis=1), boundary_token_id=0))
    assert rows == [(2, LENGTH)] * 4 + [(8, LENGTH // 4)] * 4
    with pytest.raises(ValueError, match=r"^batch of 7 sequences of 16 tokens: must be a multiple of 2$"):
        engine.accumulate(windows(0, rows=7))


def test_documents_are_kept_apart_by_the_token_that_ends_them():
    engine = build()
    tokens = np.full((8, LENGTH + 1), 2)
    tokens[:, 5] = 0
    seen = []
    engine.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["document_ids"]), with_kwargs=True)
    engine.accumulate(window_batch(tokens, boundary_token_id=0))
    assert seen[0][0].tolist() == [0] * 5 + [1] * (LENGTH - 5)


def test_update_is_that_of_the_clipped_gradient_and_returns_the_norm_before():
    clipped, scaled = build(), build()
    clipped.accumulate(windows(0))
    norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients(clipped).values()))
    assert clipped.gradient_norm() == pytest.approx(norm, rel=1e-6)
    assert clipped.update(norm / 4) == pytest.approx(norm, rel=1e-6)
    scaled.accumulate(windows(0))
    for parameter in scaled.model.parameters():
        parameter.grad.mul_(0.25)
    scaled.update(math.inf)
    for name, value in scaled.exact_state_dict().items():
        torch.testing.assert_close(clipped.exact_state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_norm_below_the_limit_and_no_limit_leave_the_gradient_as_it_is():
    engines = [build(), build()]
    for engine, limit in zip(engines, (1e6, math.inf), strict=True):
        engine.accumulate(windows(0))
        engine.update(limit)
    assert same(copies(engines[0]), copies(engines[1]))


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_nothing_of_a_discarded_batch_is_left(zero_stage):
    fields = {"zero_stage": zero_stage, "precision": "bf16", "optimizer": "muon", "guard": {"policy": "rewind"}}
    plain, disturbed = build(**fields), build(**fields)
    disturbed.accumulate(windows(7))
    disturbed.discard()
    assert same(copies(plain), copies(disturbed))
    for step in range(2):
        assert plain.accumulate(windows(step)) == disturbed.accumulate(windows(step))
        assert plain.update(1.0) == disturbed.update(1.0)
    assert same(copies(plain), copies(disturbed))


def test_rounded_weights_are_those_of_the_exact_state_and_tied_ones_stay_tied():
    engine = build(precision="bf16")
    engine.accumulate(windows(0))
    engine.update(1.0)
    exact = engine.exact_state_dict()
    assert all(value.dtype == torch.float32 for value in exact.values())
    assert exact["lm_head.weight"].data_ptr() == exact["model.embed_tokens.weight"].data_ptr()
    for name, parameter in engine.model.named_parameters():
        assert torch.equal(exact[name].bfloat16(), parameter)
    assert any((exact[name] != parameter).any() for name, parameter in engine.model.named_parameters())
    assert engine.weights()["lm_head.weight"].data_ptr() == exact["lm_head.weight"].data_ptr()  # no copy


def broken(**overrides) -> TrainingEngine:
    engine = build(**overrides)
    with torch.no_grad():
        engine.model.model.layers[1].post_attention_layernorm.weight[0] = math.nan
    return engine


def test_nan_ends_the_run_with_the_name_of_the_layer():
    with pytest.raises(
        NonFiniteError, match=r"layers\.1\.post_attention_layernorm\.weight: the weight itself holds nan"
    ):
        broken().accumulate(windows(0))


def test_nan_is_reported_and_left_to_the_guard_that_does_not_stop():
    engine = broken(guard={"policy": "skip"})
    assert math.isnan(engine.accumulate(windows(0))["train_loss"])
    assert math.isnan(engine.gradient_norm())
    engine.discard()
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_loss_of_the_configuration_is_trained_and_each_part_is_reported():
    loss = {"label_smoothing": 0.1, "multi_token_weight": 0.3, "multi_token_depth": 2, "z_loss_weight": 1e-3}
    engine = build(loss=loss)
    figures = engine.accumulate(windows(0))
    assert {"multi_token_1", "multi_token_2", "logit_z_loss", "balance_loss", "router_z_loss"} <= figures.keys()
    assert engine.model.prediction_heads.heads[1].proj.weight.grad.abs().max() > 0


def test_surgery_changes_the_gradient_where_the_objectives_conflict():
    model = {"balance_loss_weight": 20.0, "router": "top_k"}
    plain, operated = build(model), build(model, gradient_surgery=True)
    plain.accumulate(windows(0))
    figures = operated.accumulate(windows(0))
    assert figures["gradient_conflict"] < 0
    changed = {name for name, value in gradients(operated).items() if not torch.equal(value, gradients(plain)[name])}
    assert "model.layers.0.moe.gate.weight" in changed


def test_sophia_estimates_the_curvature_from_the_batch_of_every_tenth_step():
    engine = build(optimizer="sophia", learning_rate=1e-3)
    curvatures = []
    for step in range(11):
        engine.accumulate(windows(step))
        engine.update(1.0)
        state = engine.optimizer.state[engine.model.lm_head.weight]
        curvatures.append(state["curvature"].clone())
    assert all(torch.equal(curvatures[0], value) for value in curvatures[:10])
    assert curvatures[0].abs().max() > 0 and not torch.equal(curvatures[9], curvatures[10])
    assert engine.state_dict()["steps"] == 11


def test_batch_that_does_not_divide_by_the_ranks_is_refused_before_the_first_step(monkeypatch):
    monkeypatch.setattr("ava_core.training.engine.engine.connect", lambda ranks: None)
    with pytest.raises(ConfigError) as refused:
        build_engine(tiny(), settings(), Ranks(0, 0, 3))
    assert str(refused.value) == ("train.global_batch_size = 8: must be a multiple of micro_batch_size x ranks = 2 x 3")
