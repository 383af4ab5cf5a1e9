import pytest
import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.routing import update_expert_bias

TINY = {"vocab_size": 64, "hidden_size": 32, "num_layers": 3, "expert_intermediate_size": 16, "router": "expert_bias"}


def model(**overrides):
    torch.manual_seed(0)
    return EnhancedMoEForCausalLM(EnhancedMoEConfig(**{**TINY, **overrides}))


def biases(built):
    return [layer.moe.router.expert_bias for layer in built.model.layers]


def test_bias_of_zero_is_plain_top_k(make_router, make_logits):
    for scale in (0.1, 1.0, 5.0):
        biased, plain = (
            make_router(router="expert_bias")(make_logits(scale=scale)),
            make_router()(make_logits(scale=scale)),
        )
        assert torch.equal(biased.expert_ids_TK, plain.expert_ids_TK)
        assert torch.equal(biased.weights_TK, plain.weights_TK)


def test_bias_chooses_experts_but_does_not_weigh_them(make_router, make_logits):
    router = make_router(router="expert_bias", num_experts_per_token=1)
    router.expert_bias[5] = 2.0
    x = make_logits().requires_grad_()
    routing = router(x)
    assert (routing.expert_ids_TK == 5).all()
    assert torch.equal(routing.weights_TK[:, 0], x.softmax(-1)[:, 5])
    assert not list(router.parameters())


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_update_moves_against_the_load_error_by_the_rate(make_router, tau):
    router = make_router(router="expert_bias", expert_bias_update_rate=0.25, tau=tau)
    balanced_E = torch.tensor([tau] * 4 + [1.0] * 3)
    error_E = torch.tensor([0.1, -0.1, 0.05, -0.05, 0.2, -0.1, -0.1])
    router.update(2 * balanced_E / balanced_E.sum() + error_E)
    assert router.expert_bias.tolist() == [-0.25, 0.25, -0.25, 0.25, -0.25, 0.25, 0.25]


def test_a_balanced_load_moves_no_bias(make_router):
    router = make_router(router="expert_bias", num_ffn_experts=1, tau=1.0)
    router.update(torch.full((4,), 0.5))
    assert torch.equal(router.expert_bias, torch.zeros(4))


def test_updates_balance_a_skewed_router_without_any_loss(make_router, make_logits):
    router = make_router(router="expert_bias", expert_bias_update_rate=0.01, tau=1.0)
    skewed = make_logits(500) + torch.tensor([2.0, 1, 0, 0, 0, 0, -1])
    before = router(skewed).statistics.load_cv
    for _ in range(200):
        router.update(router(skewed).statistics.load_E)
    assert before > 0.5
    assert router(skewed).statistics.load_cv < 0.15


def test_update_of_a_model_goes_layer_by_layer_and_refuses_another_number_of_loads():
    built = model()
    loads = [torch.zeros(12) for _ in range(3)]
    for layer, load_E in enumerate(loads):
        load_E[layer] = 2.0
    update_expert_bias(built, loads)
    for layer, bias_E in enumerate(biases(built)):
        assert bias_E.argmin() == layer and (bias_E == 0.001).sum() == 11
    with pytest.raises(ValueError, match=r"^load_per_layer = 2 loads: must be one per layer, 3"):
        update_expert_bias(built, loads[:2])


def test_update_leaves_models_with_other_routers_alone():
    built = model(router="top_k")
    before = {name: value.clone() for name, value in built.state_dict().items()}
    update_expert_bias(built, [torch.rand(12)] * 3)
    assert all(torch.equal(before[name], value) for name, value in built.state_dict().items())


def test_bias_stays_exact_when_the_model_changes_its_type():
    built = model()
    for bias_E in biases(built):
        bias_E.fill_(0.1001)
    built.to(torch.bfloat16)
    assert built.model.layers[0].moe.gate.weight.dtype == torch.bfloat16
    for bias_E in biases(built):
        assert bias_E.dtype == torch.float32
        assert torch.equal(bias_E, torch.full((12,), 0.1001))
    update_expert_bias(built, [torch.arange(12.0)] * 3)
    assert biases(built)[0][0] == torch.tensor(0.1001) + 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_survives_saving_and_loading_exactly_in_any_type(tmp_path, dtype):
    built = model()
    for layer, bias_E in enumerate(biases(built)):
        bias_E.copy_(torch.randn(12, generator=torch.Generator().manual_seed(layer)) * 0.1)
    built.save_pretrained(tmp_path)
    loaded = EnhancedMoEForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for saved_E, loaded_E in zip(biases(built), biases(loaded), strict=True):
        assert loaded_E.dtype == torch.float32
        assert torch.equal(saved_E, loaded_E)


def test_weights_without_a_bias_load_with_a_bias_of_zero(tmp_path):
    model(router="top_k").save_pretrained(tmp_path)
    loaded = EnhancedMoEForCausalLM.from_pretrained(tmp_path, router="expert_bias")
    assert all(torch.equal(bias_E, torch.zeros(12)) for bias_E in biases(loaded))
