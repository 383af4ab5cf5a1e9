"""Gradients of the whole model in float64, and sparse against dense evaluation."""

import pytest
import torch
from torch.autograd import gradcheck

KINDS = {
    "top_k": {},
    "confidence": {"router": "confidence", "normalize_router_weights": True},
    "shared, projection norm": {"num_shared_experts": 1, "qk_norm": "projection"},
}
SMALL = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11}


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("implementation", ["dense", "looped"])
def test_loss_has_the_gradient_of_its_finite_differences(make_model, overrides, implementation):
    model = make_model(**SMALL, **overrides, expert_intermediate_size=4, experts_implementation=implementation)
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(3, 11, (1, 5), generator=generator)
    weights = [
        model.model.layers[0].self_attn.k_proj.weight,
        model.model.layers[0].moe.experts.gate_up_proj,
        model.model.layers[1].moe.gate.weight,
        model.model.layers[1].moe.gate.residual_weight,
        model.model.layers[1].moe.zero_computation.mix_weight,
        model.model.norm.weight,
    ]

    def loss(embeds, *_weights):
        return model(inputs_embeds=embeds, labels=labels).loss

    # Along random directions: every entry at once, and one second instead of a minute.
    assert gradcheck(loss, (embeds, *weights), fast_mode=True)


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("implementation", ["looped", "grouped_mm"])
def test_sparse_and_dense_evaluation_agree_to_rounding_in_float64(make_model, tokens, overrides, implementation):
    model = make_model(**overrides).double()
    results = []
    for name in (implementation, "dense"):
        if name == "grouped_mm":  # has no float64 kernel
            model = model.float()
        model.set_experts_implementation(name)
        model.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        results.append((loss.detach(), {key: weight.grad.clone() for key, weight in model.named_parameters()}))
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if implementation == "grouped_mm" else {"rtol": 1e-9, "atol": 1e-11}
    (sparse, sparse_gradients), (dense, dense_gradients) = results
    torch.testing.assert_close(sparse, dense, **tolerance)
    for key, gradient in sparse_gradients.items():
        torch.testing.assert_close(gradient, dense_gradients[key], **tolerance, msg=key)
