"""The configuration's model section and the model's own configuration accept the same values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ava_core.config.model import ModelConfig
from ava_core.config.schema import AvaConfig, Section

FIELDS = {
    "hidden_size": st.sampled_from([32, 48, 64, 66]),
    "num_layers": st.integers(0, 2),
    "num_attention_heads": st.integers(1, 6),
    "num_key_value_heads": st.integers(0, 6),
    "head_dim": st.sampled_from([None, 0, 7, 8]),
    "num_ffn_experts": st.integers(0, 4),
    "num_zero_experts": st.integers(-1, 2),
    "num_copy_experts": st.integers(-1, 2),
    "num_constant_experts": st.integers(-1, 2),
    "num_shared_experts": st.integers(-1, 2),
    "qk_norm": st.sampled_from(["head", "projection", "none", "rows"]),
    "router": st.sampled_from(
        ["top_k", "confidence", "sinkhorn", "hierarchical", "expert_bias", "expert_choice", "topk"]
    ),
    "num_expert_groups": st.integers(0, 13),
    "num_groups_per_token": st.integers(0, 4),
    "sinkhorn_iterations": st.integers(-1, 2),
    "expert_bias_update_rate": st.sampled_from([-0.1, 0.0, 0.01]),
    "experts_implementation": st.sampled_from(["auto", "grouped_mm", "looped", "native", "dense", "eager"]),
    "num_experts_per_token": st.integers(0, 8),
    "max_experts_per_token": st.integers(1, 8),
    "confidence_threshold": st.sampled_from([0.0, 0.5, 1.0, 1.5]),
    "tau": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.5]),
    "capacity_factor": st.sampled_from([None, 0.0, 1.0]),
    "balance_loss_weight": st.sampled_from([-0.1, 0.0, 1.0]),
    "router_z_loss_weight": st.sampled_from([-0.1, 0.0, 1.0]),
    "router_diversity_weight": st.sampled_from([-0.1, 0.0, 1.0]),
    "router_jitter": st.sampled_from([-0.1, 0.0, 0.5, 1.0]),
    "dropout": st.sampled_from([-0.1, 0.0, 0.5, 1.0]),
    "rope_theta": st.sampled_from([0.0, 1e4]),
}


def accepts(build, values) -> bool:
    try:
        build(**values)
    except (ValidationError, ValueError):
        return False
    return True


# One change breaks a valid configuration, or doesn't; many changes at once nearly always do.
few_changes = st.dictionaries(st.sampled_from(sorted(FIELDS)), st.none(), min_size=1, max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: FIELDS[name] for name in chosen})
)


# Groups must fit each other, so that a change of one of them alone is nearly always refused.
groups = st.fixed_dictionaries(
    {
        "router": st.just("hierarchical"),
        "num_expert_groups": st.integers(1, 13),
        "num_groups_per_token": st.integers(1, 4),
        "num_experts_per_token": st.integers(1, 13),
        "num_constant_experts": st.integers(0, 2),
    }
)


@settings(max_examples=80, deadline=None)
@given(few_changes | groups)
def test_a_model_section_is_valid_exactly_when_the_model_can_be_configured_so(changes):
    from ava_core.models import EnhancedMoEConfig

    # Every value is given, for the defaults of the two differ in places.
    values = {**ModelConfig().model_dump(), **changes}
    assert accepts(ModelConfig, values) == accepts(EnhancedMoEConfig, values)


def test_every_field_of_the_model_section_is_a_field_of_the_model():
    from ava_core.models import EnhancedMoEConfig

    values = ModelConfig().model_dump()
    config = EnhancedMoEConfig(**values)
    assert values.pop("rope_scaling")["type"] == "none" and config.rope_parameters["rope_type"] == "default"
    for name, value in values.items():
        assert value is None or getattr(config, name) == value


def sections(section=AvaConfig, prefix=""):
    yield prefix or "(top)", section
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize(("name", "section"), sections())
def test_every_section_refuses_keys_it_does_not_have(name, section):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section(no_such_key=1)


def test_values_do_not_change_after_validation():
    with pytest.raises(ValidationError, match="frozen"):
        AvaConfig().seed = 3
