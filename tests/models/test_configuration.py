import pytest

from ava_core.models import EnhancedMoEConfig, EnhancedMoEModel
from ava_core.models.configuration import ROUTERS as ROUTER_NAMES
from ava_core.models.routers import ROUTERS


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
        ("router", "topk", "one of top_k, confidence"),
        ("confidence_threshold", 0.0, "in (0, 1]"),
        ("num_experts_per_token", 99, "at most the number of experts"),
        ("tau", 1.5, "in (0, 1]"),
        ("capacity_factor", 0.0, "> 0, or null"),
        ("dropout", 1.0, "in [0, 1)"),
        ("num_zero_experts", -1, ">= 0"),
        ("experts_implementation", "eager", "one of auto, grouped_mm, looped, dense"),
    ],
)
def test_refusal_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        EnhancedMoEConfig(**{field: value})
    assert str(error.value).startswith(f"{field} = {value!r}: must be ")
    assert allowed in str(error.value)


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


def test_every_router_that_is_allowed_exists():
    assert tuple(ROUTERS) == ROUTER_NAMES
