"""The routers' auxiliary losses: values known in closed form, and gradients in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.losses import balance_loss, router_diversity_loss, router_z_loss
from ava_core.models import EnhancedMoEConfig
from ava_core.models.routing import ROUTERS, build_router

taus = st.sampled_from([0.1, 0.75, 1.0])


def router(experts=7, ffn=4, **overrides):
    fields = {"num_zero_experts": experts - ffn, "num_copy_experts": 0, "num_constant_experts": 0}
    return build_router(EnhancedMoEConfig(num_ffn_experts=ffn, **{**fields, **overrides}))


def logits(tokens=64, experts=7, dtype=torch.float32):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0), dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(ffn=st.integers(1, 8), zero_computation=st.integers(0, 8), k=st.integers(1, 16), tau=taus)
def test_balance_loss_of_uniform_routing_is_known(ffn, zero_computation, k, tau):
    E = ffn + zero_computation
    k = min(k, E)
    # f_i = K / E and P_i = 1 / E for every expert
    value = balance_loss(torch.full((E,), k / E), torch.full((E,), 1 / E), ffn, tau)
    assert value.item() == pytest.approx(k * (ffn + tau * zero_computation) / E**2, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(favourite=st.integers(0, 6), tau=taus)
def test_balance_loss_of_all_tokens_on_one_expert_is_its_eta(favourite, tau):
    collapsed = torch.full((100, 7), -50.0)
    collapsed[:, favourite] = 50.0
    routing = router(num_experts_per_token=1, tau=tau)(collapsed)
    # f = P = 1 for the favourite, 0 for the others
    assert routing.balance_loss.item() == pytest.approx(1.0 if favourite < 4 else tau)


def test_balance_loss_transcribed_by_hand():
    x, tau = logits(), 0.5
    routing = router(num_experts_per_token=2, tau=tau)(x)
    probabilities, value = x.softmax(-1), 0.0
    for i in range(7):
        f = sum(i in row for row in probabilities.topk(2).indices.tolist()) / 64
        value += (1.0 if i < 4 else tau) * f * probabilities[:, i].mean().item()
    assert routing.balance_loss.item() == pytest.approx(value, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(experts=st.integers(1, 9), k=st.integers(1, 9), tokens=st.integers(1, 30))
def test_tau_of_one_without_zero_computation_experts_is_the_vanilla_loss(experts, k, tokens):
    """Switch Transformer (arXiv 2101.03961, eq. 4) without its factor N: sum_i f_i P_i."""
    k = min(k, experts)
    x = logits(tokens, experts)
    routing = router(experts, experts, tau=1.0, num_experts_per_token=k)(x)
    chosen_TE = torch.zeros(tokens, experts).scatter(1, x.topk(k).indices, 1.0)
    vanilla = (chosen_TE.mean(0) * x.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(routing.balance_loss, vanilla)


def test_smaller_tau_pulls_less_on_zero_computation_experts():
    x = logits().requires_grad_()
    gradients = []
    for tau in (0.1, 1.0):
        load_E, mean_E = torch.full((7,), 2 / 7), x.softmax(-1).mean(0)
        gradients.append(torch.autograd.grad(balance_loss(load_E, mean_E, 4, tau), mean_E)[0])
    torch.testing.assert_close(gradients[0], gradients[1] * torch.tensor([1.0] * 4 + [0.1] * 3))


def test_z_loss_is_the_mean_squared_logsumexp():
    torch.testing.assert_close(router()(logits()).z_loss, logits().exp().sum(-1).log().square().mean())


@settings(max_examples=20, deadline=None)
@given(experts=st.integers(1, 9), level=st.floats(-5, 5))
def test_z_loss_of_equal_logits_is_known(experts, level):
    x = torch.full((4, experts), level, dtype=torch.float64)
    assert router_z_loss(x.logsumexp(-1)).item() == pytest.approx((level + math.log(experts)) ** 2, abs=1e-12)


def test_z_loss_of_several_gates_is_their_mean_and_skips_padding():
    sums = torch.tensor([[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]])
    assert router_z_loss(sums, torch.tensor([True, True, False])).item() == pytest.approx((5 + 2) / 2)


def diversity(x, mask=None):
    p = x.softmax(-1)
    mean = p.mean(0) if mask is None else p[mask].mean(0)
    return router_diversity_loss(x, p, x.logsumexp(-1), mean, mask)


def test_diversity_loss_of_known_routers():
    sure_and_even = 100 * torch.eye(7).repeat(9, 1)
    assert diversity(sure_and_even).item() == pytest.approx(0, abs=1e-5)
    # nothing about a token is known from its expert: log E, whether the one expert is sure or all are alike
    assert diversity(torch.zeros(5, 7)).item() == pytest.approx(math.log(7), rel=1e-5)
    assert diversity(100 * torch.eye(7)[:1].repeat(9, 1)).item() == pytest.approx(math.log(7), rel=1e-5)
    # two halves of the tokens on two of the experts: log 2 of log 7
    assert diversity(100 * torch.eye(7)[:2].repeat(9, 1)).item() == pytest.approx(math.log(7 / 2), rel=1e-5)


def test_diversity_loss_is_log_e_minus_the_mutual_information():
    x = logits(dtype=torch.float64)
    joint_TE = x.softmax(-1) / 64
    information = (joint_TE * (joint_TE * 64 / joint_TE.sum(0)).log()).sum()
    torch.testing.assert_close(diversity(x), math.log(7) - information)


def test_diversity_loss_skips_padding():
    x = logits(6)
    mask = torch.tensor([True, True, False, True, False, True])
    torch.testing.assert_close(diversity(x, mask), diversity(x[mask]))


def test_diversity_loss_of_an_expert_that_nobody_wants_has_a_finite_gradient():
    x = torch.tensor([[0.0, 1.0, -1e4], [1.0, 0.0, -1e4]], requires_grad=True)
    assert torch.autograd.grad(diversity(x), x)[0].isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_diversity_loss_is_computed_only_where_it_has_a_weight(weight):
    routing = router(router_diversity_weight=weight)(logits())
    assert routing.diversity_loss == (diversity(logits()) if weight else None)


@pytest.mark.parametrize("name", ROUTERS)
def test_losses_have_the_gradients_of_finite_differences(name):
    groups = 2 if name == "hierarchical" else 1
    layer = router(8, 5, router=name, num_expert_groups=groups, router_diversity_weight=1.0).train()
    x = logits(5, 8 + 2 * (name == "hierarchical"), torch.float64).requires_grad_()
    mask = torch.tensor([True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda x: layer(x, mask).balance_loss, x)
    assert torch.autograd.gradcheck(lambda x: layer(x, mask).z_loss, x)
    assert torch.autograd.gradcheck(lambda x: layer(x, mask).diversity_loss, x)


@pytest.mark.parametrize("name", ROUTERS)
def test_gate_values_have_the_gradients_of_finite_differences(name):
    groups = 2 if name == "hierarchical" else 1
    layer = router(8, 5, router=name, num_expert_groups=groups, normalize_router_weights=True).train()
    x = logits(5, 8 + 2 * (name == "hierarchical"), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x).weights_TK, x)
