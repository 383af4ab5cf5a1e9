"""Regularisation by the gap between validation and training loss: its law, and that what it sets is really used."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ava_core.config.model import ModelConfig
from ava_core.config.schema import AvaConfig
from ava_core.config.train import RegularizationConfig, TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.optimizers.adamw import AdamW
from ava_core.training.regularization import AdaptiveRegularizer

TOKENS = torch.arange(24).reshape(2, 12)
NEUTRAL = {"max_dropout": 0.0, "max_router_jitter": 0.0, "max_weight_decay": 0.05}
"""Maxima that are where the values start: a test lets one of them grow."""


def tiny(**overrides):
    torch.manual_seed(0)
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_ffn_experts=2,
            expert_intermediate_size=16,
            **overrides,
        )
    )


def parts(model=None, *, adaptive=True, weight_decay=0.05, dropout=0.0, decays=None, **regularization):
    """A model, an optimiser with one group that decays and one that doesn't, and their regulariser."""
    model = model or tiny(dropout=dropout)
    weights = list(model.parameters())
    matrices = [weight for weight in weights if weight.ndim >= 2]
    others = [weight for weight in weights if weight.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in zip((matrices, others), decays or (weight_decay, 0.0), strict=True)
    ]
    optimizer = AdamW(groups, lr=0.1)
    section = RegularizationConfig(adaptive=adaptive, **regularization)
    config = TrainConfig(weight_decay=weight_decay, regularization=section)
    return model, optimizer, AdaptiveRegularizer(model, optimizer, config, ModelConfig(dropout=dropout))


def hidden(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture(scope="module")
def shared():
    return parts(target_gap=0.1, rate=0.3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30))
def test_strength_and_values_stay_in_bounds_whatever_the_losses_are(shared, losses):
    model, optimizer, regularizer = shared
    for validation_loss, train_loss in losses:
        before = regularizer.strength
        figures = regularizer.after_evaluation(validation_loss, train_loss)
        assert 0 <= regularizer.strength <= 1
        assert abs(regularizer.strength - before) <= 0.3 + 1e-12
        assert 0 <= figures["dropout"] <= 0.2 + 1e-12
        assert 0.05 <= figures["weight_decay"] <= 0.2 + 1e-12
        assert 0 <= figures["router_jitter"] <= 0.1 + 1e-12
        assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(figures["weight_decay"])
        assert {layer.dropout.p for layer in model.model.layers} == {figures["dropout"]}
        assert {layer.moe.gate.jitter for layer in model.model.layers} == {figures["router_jitter"]}


def test_step_is_the_rate_times_the_relative_distance_from_the_target():
    regularizer = parts(target_gap=0.1, rate=0.3)[2]
    strengths = [
        regularizer.after_evaluation(*losses)["regularization_strength"]
        for losses in [(2.2, 2.0), (3.0, 2.0), (2.1, 2.0), (2.05, 2.0), (1.0, 2.0)]
    ]
    expected = [0.3 / 3, 0.1 + 0.3 * 0.9 / 1.1]  # at twice the target a third of the rate
    expected += [expected[-1], expected[-1] - 0.3 / 3]  # at the target nothing; at half of it a third downwards
    expected += [max(0.0, expected[-1] - 0.3)]  # below no gap the whole rate
    assert strengths == pytest.approx(expected)


def test_overfitting_raises_the_strength_up_to_the_maxima_and_recovery_lowers_it_to_the_start():
    model, optimizer, regularizer = parts(rate=0.5, target_gap=0.05)
    rising = [regularizer.after_evaluation(2.0 + 0.1 * i, 2.0 - 0.1 * i) for i in range(1, 9)]
    values = [row["regularization_strength"] for row in rising]
    assert values == sorted(values) and values[0] > 0 and values[-1] == 1.0
    assert rising[-1] == pytest.approx(
        {"regularization_strength": 1.0, "dropout": 0.2, "weight_decay": 0.2, "router_jitter": 0.1}
    )
    falling = [regularizer.after_evaluation(2.0, 2.0) for _ in range(3)]
    assert [row["regularization_strength"] for row in falling] == [0.5, 0.0, 0.0]
    assert falling[-1] == {"regularization_strength": 0.0, "dropout": 0.0, "weight_decay": 0.05, "router_jitter": 0.0}
    assert model.model.layers[0].dropout.p == 0.0
    assert optimizer.param_groups[0]["weight_decay"] == 0.05


def test_without_a_target_only_no_gap_at_all_changes_nothing():
    regularizer = parts(target_gap=0.0, rate=0.25)[2]
    assert [
        regularizer.after_evaluation(2.0 + gap, 2.0)["regularization_strength"] for gap in (0.0, 1e-3, 0.0, -1e-3)
    ] == [0.0, 0.25, 0.25, 0.0]


@pytest.mark.parametrize("losses", [(float("nan"), 2.0), (float("inf"), 2.0), (float("inf"), float("inf"))])
def test_loss_that_is_not_finite_changes_nothing(losses):
    regularizer = parts(rate=0.25)[2]
    before = regularizer.after_evaluation(3.0, 2.0)
    assert regularizer.after_evaluation(*losses) == before


@pytest.mark.parametrize("driven", [{"max_dropout": 0.5}, {"max_router_jitter": 0.5}], ids=["dropout", "router_jitter"])
def test_noise_that_was_raised_changes_the_forward_pass_in_training_alone(driven):
    model, _, regularizer = parts(**{**NEUTRAL, **driven})
    model.train()
    assert torch.equal(hidden(model), hidden(model))
    regularizer.after_evaluation(3.0, 2.0)
    assert not torch.equal(hidden(model), hidden(model))
    model.eval()
    assert torch.equal(hidden(model), hidden(model))


def test_raised_weight_decay_changes_the_update_by_its_own_share():
    def updated(evaluate):
        model, optimizer, regularizer = parts(**{**NEUTRAL, "max_weight_decay": 0.45}, rate=1.0, target_gap=0.0)
        if evaluate:
            regularizer.after_evaluation(3.0, 2.0)
        start = [weight.detach().clone() for weight in model.parameters()]
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        return start, list(model.parameters())

    (start, usual), (_, decayed) = updated(False), updated(True)
    for before, one, other in zip(start, usual, decayed, strict=True):
        share = 0.1 * (0.45 - 0.05) if before.ndim >= 2 else 0.0  # learning rate x decay that was added
        torch.testing.assert_close(one - other, share * before, rtol=1e-4, atol=1e-6)


def test_groups_keep_their_proportions_and_those_without_decay_have_none():
    _, optimizer, regularizer = parts(decays=(0.025, 0.0), rate=1.0, target_gap=0.0)
    regularizer.after_evaluation(3.0, 2.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.0])


def test_no_decay_stays_none_and_says_so():
    _, optimizer, regularizer = parts(weight_decay=0.0, rate=1.0)
    assert regularizer.after_evaluation(3.0, 2.0)["weight_decay"] == 0.0
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_where_it_is_off_nothing_changes():
    model, optimizer, regularizer = parts(adaptive=False, dropout=0.1)
    before = json.dumps([str(model), [group["weight_decay"] for group in optimizer.param_groups]])
    assert regularizer.after_evaluation(5.0, 1.0) == {} == regularizer.figures() == regularizer.state_dict()
    regularizer.load_state_dict({"strength": 1.0})
    assert json.dumps([str(model), [group["weight_decay"] for group in optimizer.param_groups]]) == before
    assert {layer.moe.gate.jitter for layer in model.model.layers} == {0.0}


def test_resumed_run_has_the_values_of_the_one_that_was_stopped():
    model, optimizer, regularizer = parts()
    figures = regularizer.after_evaluation(3.0, 2.0)
    state = json.loads(json.dumps(regularizer.state_dict()))
    resumed_model, resumed_optimizer, resumed = parts()
    resumed_optimizer.load_state_dict(optimizer.state_dict())  # puts new groups in the place of the old ones
    resumed.load_state_dict(state)
    assert resumed.figures() == figures
    assert resumed_model.model.layers[1].dropout.p == model.model.layers[1].dropout.p == figures["dropout"]
    assert resumed_model.model.layers[1].moe.gate.jitter == figures["router_jitter"]
    assert [g["weight_decay"] for g in resumed_optimizer.param_groups] == [
        g["weight_decay"] for g in optimizer.param_groups
    ]
    assert resumed.after_evaluation(3.0, 2.0) == regularizer.after_evaluation(3.0, 2.0)
    assert resumed_optimizer.param_groups[0]["weight_decay"] == optimizer.param_groups[0]["weight_decay"]


@pytest.mark.parametrize(
    ("train", "model", "message"),
    [
        ({"max_dropout": 0.1}, {"dropout": 0.3}, r"max_dropout = 0\.1: must be >= model\.dropout = 0\.3"),
        (
            {"max_router_jitter": 0.0},
            {"router_jitter": 0.1},
            r"max_router_jitter = 0\.0: must be >= model\.router_jitter",
        ),
        ({"max_weight_decay": 0.01}, {}, r"max_weight_decay = 0\.01: must be >= weight_decay = 0\.05"),
    ],
)
def test_maximum_below_the_start_is_refused_only_where_it_would_be_used(train, model, message):
    def build(adaptive):
        return AvaConfig.model_validate({"model": model, "train": {"regularization": {"adaptive": adaptive, **train}}})

    with pytest.raises(ValidationError, match=message):
        build(True)
    build(False)
