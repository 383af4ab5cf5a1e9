import pytest

from ava_core.config.limits import MODEL_SIZES
from ava_core.models import EnhancedMoEConfig, EnhancedMoEModel


def test_two_arguments_are_enough():
    model = EnhancedMoEModel(EnhancedMoEConfig(hidden_size=128, num_layers=2))
    assert len(model.layers) == 2
    assert model.config.num_hidden_layers == 2
    assert model.config.head_dim == 32


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("num_layers", 0, "> 0"),
        ("hidden_size", 130, "a multiple of num_attention_heads"),
        ("num_key_value_heads", 3, "a divisor of num_attention_heads"),
        ("head_dim", 7, "even"),
        ("router", "topk", "one of top_k, confidence, sinkhorn, hierarchical, expert_bias, expert_choice"),
        ("confidence_threshold", 0.0, "in (0, 1]"),
        ("num_experts_per_token", 99, "<= 12, the number of experts"),
        ("tau", 1.5, "in (0, 1]"),
        ("capacity_factor", 0.0, "> 0, or null"),
        ("capacity_factor", float("inf"), "> 0, or null"),
        ("qk_norm", "rows", "one of head, projection, none"),
        ("sinkhorn_iterations", 0, "> 0"),
        ("expert_bias_update_rate", -0.1, ">= 0"),
        ("num_groups_per_token", 0, "> 0"),
        ("tau", float("nan"), "> 0"),
        ("dropout", 1.0, "in [0, 1)"),
        ("num_zero_experts", -1, ">= 0"),
        ("experts_implementation", "eager", "one of auto, grouped_mm, looped, native, dense"),
    ],
)
def test_refusal_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        EnhancedMoEConfig(**{field: value})
    assert str(error.value).startswith(f"{field} = {value!r}: must be ")
    assert allowed in str(error.value)


@pytest.mark.parametrize("router", ["top_k", "sinkhorn", "hierarchical", "expert_bias", "expert_choice"])
def test_more_experts_per_token_than_experts_are_refused_for_every_router_with_a_fixed_number(router):
    with pytest.raises(ValueError, match=r"^num_experts_per_token = 13: must be <= 12, the number of experts$"):
        EnhancedMoEConfig(router=router, num_experts_per_token=13)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_expert_groups": 5}, "num_expert_groups = 5: must divide 12, the number of experts"),
        ({"num_groups_per_token": 2}, "num_groups_per_token = 2: must be <= num_expert_groups = 1"),
        (
            {"num_expert_groups": 6, "num_experts_per_token": 3},
            "num_experts_per_token = 3: must be <= 2, the experts in num_groups_per_token = 1 groups",
        ),
    ],
)
def test_impossible_groups_are_refused_by_the_hierarchical_router_alone(fields, message):
    with pytest.raises(ValueError) as error:
        EnhancedMoEConfig(router="hierarchical", **fields)
    assert str(error.value) == message
    assert EnhancedMoEConfig(router="top_k", **fields).num_logits == 12


def test_the_gate_of_groups_has_a_logit_more_per_group_unless_there_is_but_one():
    widths = [EnhancedMoEConfig(router="hierarchical", num_expert_groups=groups).num_logits for groups in (1, 2, 6)]
    assert widths == [12, 14, 18]


@pytest.mark.parametrize(("given", "kept"), [(True, "head"), (False, "none"), ("projection", "projection")])
def test_truths_for_qk_norm_are_read_as_names(given, kept):
    assert EnhancedMoEConfig(qk_norm=given).qk_norm == kept


def test_rope_theta_reaches_rope_parameters_and_survives_a_round_trip(tmp_path):
    config = EnhancedMoEConfig(rope_theta=5e5)
    assert config.rope_parameters["rope_theta"] == 5e5
    config.save_pretrained(tmp_path)
    loaded = EnhancedMoEConfig.from_pretrained(tmp_path)
    assert loaded.rope_theta == 5e5
    assert loaded.to_dict() == config.to_dict()


def test_rope_parameters_win_over_rope_theta():
    config = EnhancedMoEConfig(rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert config.rope_theta == 7.0


@pytest.mark.parametrize("field", MODEL_SIZES)
def test_size_past_all_reason_is_refused_before_anything_is_allocated(field):
    with pytest.raises(ValueError, match=rf"{field} = .*: must be <= "):
        EnhancedMoEConfig(**{"head_dim": 8, field: 10**30})
