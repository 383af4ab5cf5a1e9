"""What the other side lacks is refused by field, value, rule and target."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import OlmoeModel, PreTrainedConfig

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.conversion import (
    PEERS,
    config_from_transformers,
    config_to_transformers,
    configs,
    from_transformers,
    to_transformers,
)

KINDS = tuple(PEERS)
PLAIN = {
    "hidden_size": 32,
    "num_zero_experts": 0,
    "num_copy_experts": 0,
    "num_constant_experts": 0,
    "gating_residuals": False,
    "router_z_loss_weight": 0.0,
}


def convertible(kind, **overrides):
    special = {"qk_norm": PEERS[kind].qk_norm, "normalize_router_weights": PEERS[kind].normalises_always}
    return EnhancedMoEConfig(**{**PLAIN, **special, **overrides})


def refusal(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "field, value, word",
    [
        ("num_zero_experts", 1, "zero-computation"),
        ("num_copy_experts", 2, "zero-computation"),
        ("num_constant_experts", 1, "zero-computation"),
        ("num_shared_experts", 1, "shared experts"),
        ("gating_residuals", True, "gating residuals"),
        ("router", "confidence", "router"),
        ("router", "sinkhorn", "router"),
        ("router", "expert_bias", "router"),
        ("capacity_factor", 1.25, "capacity"),
        ("router_jitter", 0.1, "jitter"),
        ("router_z_loss_weight", 0.001, "z-loss"),
        ("router_diversity_weight", 0.001, "diversity"),
        ("dropout", 0.1, "dropout"),
    ],
)
def test_feature_that_no_target_has_is_refused_by_name(kind, field, value, word):
    config_to_transformers(convertible(kind), kind)  # nothing else stands in the way
    message = refusal(config_to_transformers, convertible(kind, **{field: value}), kind)
    assert message.startswith(f"{field} = {value!r}: must be ") and kind in message and word in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("qk_norm", ["head", "projection", "none"])
def test_only_the_targets_own_qk_norm_passes(kind, qk_norm):
    config = convertible(kind, qk_norm=qk_norm)
    if qk_norm == PEERS[kind].qk_norm:
        assert config_to_transformers(config, kind).model_type == kind
    else:
        assert refusal(config_to_transformers, config, kind).startswith(f"qk_norm = {qk_norm!r}: must be ")


def test_mixtral_cant_leave_router_weights_unnormalised():
    message = refusal(config_to_transformers, convertible("mixtral", normalize_router_weights=False), "mixtral")
    assert message.startswith("normalize_router_weights = False: must be True for mixtral")


@pytest.mark.parametrize("kind, allowed", [("olmoe", False), ("mixtral", True), ("qwen3_moe", True)])
def test_free_width_of_heads_is_refused_where_the_target_derives_it(kind, allowed):
    config = convertible(kind, head_dim=16)  # hidden_size / heads is 8
    if allowed:
        assert config_to_transformers(config, kind).head_dim == 16
    else:
        assert refusal(config_to_transformers, config, kind).startswith("head_dim = 16: must be 8 for olmoe")


@pytest.mark.parametrize(
    "kind, field, value",
    [
        ("olmoe", "clip_qkv", 8.0),
        ("olmoe", "attention_bias", True),
        ("olmoe", "hidden_act", "gelu"),
        ("olmoe", "sliding_window", 16),
        ("mixtral", "router_jitter_noise", 0.1),
        ("mixtral", "attention_dropout", 0.1),
        ("qwen3_moe", "mlp_only_layers", [1]),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("qwen3_moe", "attention_bias", True),
    ],
)
def test_feature_that_ours_lacks_is_refused_by_name(kind, field, value, make_theirs):
    message = refusal(from_transformers, make_theirs(kind, **{field: value}))
    assert message.startswith(f"{field} = {value!r}: must be ") and "for Ava" in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 2.0},
    ],
    ids=["llama3", "longrope"],
)
def test_other_ways_to_scale_rope_are_refused(kind, rope, make_theirs):
    config = make_theirs(kind).config
    config.rope_parameters = {**rope, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    message = refusal(config_from_transformers, config)
    assert message.startswith(f"rope_parameters.rope_type = {rope['rope_type']!r}: must be one of default, linear")


def test_partly_rotated_heads_are_refused(make_theirs):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    message = refusal(from_transformers, make_theirs("olmoe", rope_parameters=rope))
    assert message.startswith("rope_parameters.partial_rotary_factor = 0.5: must be 1")


def test_windows_that_a_target_lacks_are_refused():
    sliding = convertible("olmoe", sliding_window=8)
    assert refusal(config_to_transformers, sliding, "olmoe").startswith("sliding_window = 8: must be None for olmoe")
    mixed = convertible("mixtral", sliding_window=8, layer_types=["full_attention", "sliding_attention"])
    message = refusal(config_to_transformers, mixed, "mixtral")
    assert message.startswith("layer_types = ['full_attention', 'sliding_attention', 'full_attention', 'sliding_atte")
    assert "must be sliding_attention for every layer for mixtral" in message


def test_layers_of_different_shapes_are_refused(make_theirs):
    config = make_theirs("mixtral").config
    config.per_layer_config = {0: {"intermediate_size": 8}}
    assert refusal(config_from_transformers, config).startswith("is_heterogeneous = True: must be False")


def test_unknown_targets_and_models_are_refused(make_theirs):
    message = refusal(config_to_transformers, convertible("olmoe"), "llama")
    assert message == "target = 'llama': must be one of olmoe, mixtral, qwen3_moe"
    without_head = OlmoeModel(make_theirs("olmoe").config)
    assert refusal(from_transformers, without_head).startswith("type(model) = OlmoeModel: must be one of")


def test_parameter_without_counterpart_is_refused_in_both_directions(make_theirs):
    theirs = make_theirs("mixtral")
    ours = from_transformers(theirs)
    for model, convert in ((theirs, from_transformers), (ours, lambda m: to_transformers(m, "mixtral"))):
        model.model.layers[1].self_attn.adapter = nn.Linear(32, 2, bias=False)
        message = refusal(convert, model)
        assert message.startswith("model.layers.1.self_attn.adapter.weight = (2, 32): must be ")
        del model.model.layers[1].self_attn.adapter
        model.model.extra = nn.Parameter(torch.zeros(3))
        assert refusal(convert, model).startswith("model.extra = (3,): must be ")
        del model.model.extra
        del model.model.layers[0].input_layernorm.weight
        assert refusal(convert, model).startswith("model.layers.0.input_layernorm.weight: must be in both models")


def test_parameter_of_another_shape_is_refused(make_theirs):
    theirs = make_theirs("olmoe")
    theirs.lm_head.weight = nn.Parameter(torch.zeros(60, 32))
    assert refusal(from_transformers, theirs).startswith("lm_head.weight = (60, 32): must be (61, 32)")


def test_head_that_was_untied_by_hand_is_refused(make_theirs):
    theirs = make_theirs("olmoe", tie_word_embeddings=True)
    theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.clone())
    assert refusal(from_transformers, theirs).startswith("tie_word_embeddings = True: must be False when")


def test_every_field_of_our_configuration_is_carried_over_or_ruled_on():
    fields = {f.name for f in dataclasses.fields(EnhancedMoEConfig)} - {
        f.name for f in dataclasses.fields(PreTrainedConfig)
    }
    carried = {
        *configs._SHARED_FIELDS,
        "num_layers",  # num_hidden_layers
        "head_dim",
        "rope_theta",
        "rope_parameters",
        "qk_norm",
        "num_ffn_experts",
        "expert_intermediate_size",
        "num_experts_per_token",
        "normalize_router_weights",
        "balance_loss_weight",
    }
    ruled = {rule.field for rule in configs._OUR_RULES}
    # Speak of other routers or of zero-computation experts only, or of how something is computed and not what.
    without_effect = {
        "confidence_threshold",
        "max_experts_per_token",
        "num_expert_groups",
        "num_groups_per_token",
        "sinkhorn_iterations",
        "expert_bias_update_rate",
        "tau",
        "experts_implementation",
    }
    assert fields - carried - ruled - without_effect == set()


def test_model_with_zero_computation_experts_is_refused_as_a_model_too():
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=11, hidden_size=16, num_layers=1))
    message = refusal(to_transformers, model, "olmoe")
    assert message == "num_zero_experts = 1: must be 0 for olmoe: it has no zero-computation experts"
