import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ava_core.models import EnhancedMoEConfig
from ava_core.models.dispatch import combine, dispatch, sort_by_expert
from ava_core.models.experts import FFNExperts
from ava_core.models.moe import MoELayer
from ava_core.models.routing import Routing


def make_experts(n=4, implementation="looped"):
    config = EnhancedMoEConfig(
        hidden_size=16, expert_intermediate_size=8, num_ffn_experts=n, experts_implementation=implementation
    )
    layer = FFNExperts(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return layer


def make_routing(ids, weights=None, used=None):
    used = torch.ones_like(ids, dtype=torch.bool) if used is None else used
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) if weights is None else weights
    return Routing(
        expert_ids_TK=ids,
        weights_TK=weights * used,
        used_TK=used,
        logits_TE=None,
        balance_loss=None,
        z_loss=None,
        statistics=None,
    )


def results(implementation, x, routing, n=4):
    """Output, then gradients of input, gate values and both weights."""
    layer = make_experts(n, implementation)
    x = x.clone().requires_grad_()
    weights = routing.weights_TK.clone().requires_grad_()
    out = layer(x, make_routing(routing.expert_ids_TK, weights, routing.used_TK))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((out * upstream).sum(), [x, weights, *layer.parameters()])
    return [out, grads[0], grads[1] * routing.used_TK * (routing.expert_ids_TK < n), *grads[2:]]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), tokens=st.integers(1, 17), k=st.integers(1, 4), n=st.integers(1, 5))
@pytest.mark.parametrize("implementation", ["looped", "grouped_mm"])
def test_sparse_and_dense_agree_in_values_and_gradients(implementation, data, tokens, k, n):
    # Ids n and above are zero-computation experts; which of the others stay empty is up to chance.
    rows = [data.draw(st.permutations(range(n + 4)))[:k] for _ in range(tokens)]
    used = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=tokens, max_size=tokens))
    )
    routing = make_routing(torch.tensor(rows), used=used)
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(3))
    for sparse, dense in zip(results(implementation, x, routing, n), results("dense", x, routing, n), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["looped", "grouped_mm"])
@pytest.mark.parametrize("expert", [0, 3, 5])
def test_all_tokens_to_one_expert(implementation, expert):
    routing = make_routing(torch.full((9, 1), expert))
    x = torch.randn(9, 16)
    for sparse, dense in zip(results(implementation, x, routing), results("dense", x, routing), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_experts_are_swiglu_networks():
    layer, x = make_experts(), torch.randn(5, 16)
    out = layer(x, make_routing(torch.full((5, 1), 2), torch.full((5, 1), 0.5)))
    gate, up = layer.gate_up_proj[2, :8], layer.gate_up_proj[2, 8:]
    torch.testing.assert_close(out, 0.5 * (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down_proj[2].T)


@pytest.mark.parametrize("implementation", ["looped", "grouped_mm", "dense"])
def test_autocast_keeps_weights_and_their_gradients_in_float32(implementation):
    layer = make_experts(implementation=implementation)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(6, 16), make_routing(torch.arange(6)[:, None] % 4))
    out.sum().backward()
    assert out.dtype == torch.float32
    assert layer.gate_up_proj.grad.dtype == torch.float32


def test_rows_of_unused_slots_may_hold_anything():
    # What a GPU kernel leaves past the last group; it must reach neither outputs nor gradients.
    ids, used = torch.tensor([[0, 9], [1, 0]]), torch.tensor([[True, True], [False, True]])
    permutation = sort_by_expert(ids, used, 2, keep_unused=True)
    x, weights = torch.randn(2, 3, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    rows = dispatch(x, permutation)
    y = torch.cat((rows[:2], torch.full((2, 3), float("nan"))))
    out = combine(y, weights, permutation)
    torch.testing.assert_close(out, torch.stack((weights[0, 0] * x[0], weights[1, 1] * x[1])))
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(weights.grad).all()


def moe_layer(**overrides):
    fields = {
        "hidden_size": 16, "expert_intermediate_size": 8, "num_ffn_experts": 3,
        "num_zero_experts": 1, "num_copy_experts": 1, "num_constant_experts": 2, "num_experts_per_token": 3,
    }  # fmt: skip
    layer = MoELayer(EnhancedMoEConfig(**{**fields, **overrides}), layer_idx=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return layer.eval()


def swiglu_expert(layer, i, x):
    gate, up = layer.experts.gate_up_proj[i].chunk(2)
    return layer.experts.down_proj[i] @ (F.silu(gate @ x) * (up @ x))


def test_layer_matches_a_transcription_of_the_paper():
    layer = moe_layer()
    x, previous = torch.randn(1, 6, 16), torch.randn(6, 7)
    out, logits, _ = layer(x, previous)
    for t, token in enumerate(x[0]):
        g = layer.gate.weight @ token + layer.gate.residual_weight @ previous[t]  # eq. 6
        torch.testing.assert_close(logits[t], g)
        probabilities, expected = g.softmax(0), torch.zeros(16)
        for i in probabilities.topk(3).indices.tolist():
            if i < 3:
                value = swiglu_expert(layer, i, token)
            elif i == 3:
                value = torch.zeros(16)  # eq. 3
            elif i == 4:
                value = token  # eq. 4
            else:
                c = i - 5  # eq. 5
                a1, a2 = (layer.zero_computation.mix_weight[2 * c : 2 * c + 2] @ token).softmax(0)
                value = a1 * token + a2 * layer.zero_computation.constants[c]
            expected = expected + probabilities[i] * value
        torch.testing.assert_close(out[0, t], expected, rtol=1e-4, atol=1e-5)


def test_first_layer_has_no_gating_residual():
    config = EnhancedMoEConfig(hidden_size=16)
    assert MoELayer(config, 0).gate.residual_weight is None
    assert MoELayer(config, 1).gate.residual_weight is not None
    assert MoELayer(EnhancedMoEConfig(hidden_size=16, gating_residuals=False), 1).gate.residual_weight is None


def test_tau_one_without_zero_computation_experts_is_vanilla_moe():
    layer = moe_layer(
        num_zero_experts=0, num_copy_experts=0, num_constant_experts=0, tau=1.0, gating_residuals=False,
        num_experts_per_token=2, num_ffn_experts=4,
    )  # fmt: skip
    x = torch.randn(1, 20, 16)
    out, _logits, routing = layer(x)
    probabilities = (x[0] @ layer.gate.weight.T).softmax(-1)
    top = probabilities.topk(2)
    expected = torch.stack([
        sum(p * swiglu_expert(layer, i, x[0, t]) for p, i in zip(top.values[t], top.indices[t].tolist(), strict=True))
        for t in range(20)
    ])  # fmt: skip
    torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-5)
    load = torch.bincount(top.indices.flatten(), minlength=4) / 20  # Switch Transformer, eq. 4 to 6
    torch.testing.assert_close(routing.balance_loss, (load * probabilities.mean(0)).sum())


def test_shared_experts_see_every_token_with_weight_one():
    layer = moe_layer(num_shared_experts=2)
    x = torch.randn(1, 5, 16)
    with_shared = layer(x)[0]
    shared, layer.shared_experts = layer.shared_experts, None
    torch.testing.assert_close(with_shared, layer(x)[0] + shared(x))


def test_jitter_acts_in_training_only():
    layer, x = moe_layer(router_jitter=0.1), torch.randn(1, 5, 16)
    assert torch.equal(layer(x)[1], layer(x)[1])
    layer.train()
    assert not torch.equal(layer(x)[1], layer(x)[1])
