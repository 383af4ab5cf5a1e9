"""Which parameters patterns mean, and the rates that layers and groups get."""

import pytest
import torch

from ava_core.config.estimate import estimate
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import count, parameters_of
from ava_core.config.patterns import divide, rate_multiple
from ava_core.config.train import RateGroup, TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.freezing import freeze
from ava_core.training.optimizers.parameters import parameter_groups

MODEL = {"hidden_size": 32, "num_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "num_ffn_experts": 4}
FREEZE = ["embed*", "model.layers.0.*", "*.moe.gate.residual_weight"]


def model() -> EnhancedMoEForCausalLM:
    return EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=64, **ModelConfig(**MODEL).model_dump()))


@pytest.mark.parametrize("tied", [True, False])
def test_names_from_the_configuration_are_those_of_the_model(tied):
    config = ModelConfig(**MODEL, tie_word_embeddings=tied, num_shared_experts=1)
    built = EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=64, **config.model_dump()))
    names = [name for parameter in parameters_of(config, 64) for name in parameter.names]
    assert sorted(names) == sorted(name for name, _ in built.named_parameters())


def test_what_is_frozen_by_the_configuration_is_frozen_in_the_model():
    built = model()
    freeze(built, TrainConfig(freeze=FREEZE))
    trained, frozen = divide(parameters_of(ModelConfig(**MODEL), 64), FREEZE)
    assert count(frozen) == sum(p.numel() for p in built.parameters() if not p.requires_grad) > 0
    assert count(trained) == sum(p.numel() for p in built.parameters() if p.requires_grad)


def test_frozen_parameters_take_their_weights_and_nothing_else():
    config = ModelConfig(**MODEL)
    whole = estimate(config, TrainConfig(optimizer="adamw", precision="bf16"), 4096, "native")
    part = estimate(config, TrainConfig(optimizer="adamw", precision="bf16", freeze=["embed*"]), 4096, "native")
    entries = 4096 * 32
    assert part.frozen_parameters == entries and part.parameters == whole.parameters
    saved = {name: whole.parts[name] - part.parts[name] for name in whole.parts}
    assert saved["weights"] == 0
    # In bfloat16: float32 master and two moments; the gradient; of a checkpoint's copy the rounded weight too.
    assert saved["optimizer"] == 12 * entries
    assert saved["gradients"] == 2 * entries
    assert saved["checkpoint"] == 14 * entries


def test_layers_decay_from_the_top_and_the_first_group_counts():
    config = TrainConfig(
        learning_rate_decay_by_layer=0.5,
        learning_rate_groups=[
            RateGroup(pattern="layers.2.moe.*", multiplier=3.0),
            RateGroup(pattern="*.moe.*", multiplier=7.0),
        ],
    )
    names = {
        "model.norm.weight": 1.0,
        "lm_head.weight": 1.0,
        "model.layers.2.self_attn.q_proj.weight": 0.5,
        "model.layers.2.moe.gate.weight": 1.5,
        "model.layers.0.moe.gate.weight": 0.875,
        "model.embed_tokens.weight": 0.0625,
    }
    assert {name: rate_multiple(name, 3, config) for name in names} == pytest.approx(names)


def test_every_trained_parameter_has_its_rate_in_one_group():
    built, config = model(), TrainConfig(learning_rate_decay_by_layer=0.5, freeze=["layers.1.*"])
    freeze(built, config)
    names = {id(p): name for name, p in built.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(built, config) for p in group["params"]}
    assert rates.keys() == {name for name, p in built.named_parameters() if p.requires_grad}
    assert rates["model.layers.2.self_attn.q_proj.weight"] == pytest.approx(0.02 * 0.5)
    assert rates["model.layers.0.moe.experts.down_proj"] == pytest.approx(0.02 * 0.125)
    assert rates["model.embed_tokens.weight"] == pytest.approx(0.004 * 0.0625)
    assert torch.tensor(list(rates.values())).isfinite().all()
