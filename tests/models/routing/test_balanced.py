"""The routers that look at the whole batch: sinkhorn and expert choice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.models.routing.capacity import expert_capacities, expert_shares
from ava_core.models.routing.sinkhorn import sinkhorn_potentials

BOTH = pytest.mark.parametrize("name", ["sinkhorn", "expert_choice"])


def distance_from_wanted(routing, tau):
    """Total variation between the loads and the tau-weighted shares: 0 is balanced, 1 is as far as can be."""
    load_E = routing.statistics.load_E.double()
    return (load_E / load_E.sum() - expert_shares(tau, 4, 7)).abs().sum().item() / 2


@BOTH
@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_training_is_balanced_where_top_k_is_not(make_router, make_logits, name, tau, scale):
    skewed = make_logits(2000, scale=scale) + scale * torch.tensor([3.0, 3, 0, 0, 0, 0, -3])
    balanced = make_router(router=name, tau=tau).train()(skewed)
    assert distance_from_wanted(balanced, tau) < 0.06
    assert distance_from_wanted(make_router(tau=tau)(skewed), tau) > 0.3


@BOTH
def test_evaluation_is_plain_top_k(make_router, make_logits, name):
    skewed = make_logits() + torch.tensor([3.0, 3, 0, 0, 0, 0, -3])
    router, plain = make_router(router=name).eval(), make_router()(skewed)
    routing = router(skewed)
    assert torch.equal(routing.expert_ids_TK, plain.expert_ids_TK)
    assert torch.equal(routing.weights_TK, plain.weights_TK)
    assert not torch.equal(router.train()(skewed).statistics.load_E, plain.statistics.load_E)


@BOTH
@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 30), padding=st.integers(1, 9), scale=st.sampled_from([0.0, 1.0, 1e4]), seed=st.integers(0, 9)
)
def test_padding_changes_no_choice_of_the_tokens(make_router, make_logits, name, tokens, padding, scale, seed):
    router = make_router(router=name).train()
    x = make_logits(tokens + padding, scale=scale, seed=seed)
    # Multiples of 1/8, so that sums over experts and tokens are the same with the padding in between and without.
    x = (x * 8).round() / 8
    mask = torch.arange(tokens + padding) >= padding
    masked, alone = router(x, mask), router(x[padding:])
    assert torch.equal(masked.used_TK[padding:], alone.used_TK)
    if name == "expert_choice":
        assert not masked.used_TK[:padding].any()
    torch.testing.assert_close(masked.statistics.load_E, alone.statistics.load_E)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1.0, 3.0]),
    tau=st.floats(0.2, 1.0),
    seed=st.integers(0, 9),
)
def test_sinkhorn_plan_has_the_wanted_marginals(tokens, experts, scale, tau, seed):
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    shares_E = expert_shares(tau, (experts + 1) // 2, experts)
    plan_TE = (logits + sinkhorn_potentials(logits, shares_E, 2000)).softmax(dim=1)
    torch.testing.assert_close(plan_TE.sum(dim=0), shares_E * tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fill", ["random", "one expert", "opposite", "equal"])
def test_sinkhorn_is_finite_at_huge_logits(make_router, make_logits, fill):
    x = make_logits(200, scale=1e4)
    if fill == "one expert":
        x = torch.full((200, 7), -1e4)
        x[:, 2] = 1e4
    elif fill == "opposite":
        x = torch.full((200, 7), -1e4)
        x[:100, 0], x[100:, 1] = 1e4, 1e4
    elif fill == "equal":
        x = torch.full((200, 7), 1e4)
    x.requires_grad_()
    routing = make_router(router="sinkhorn").train()(x)
    (routing.weights_TK.sum() + routing.balance_loss + routing.z_loss * 1e-8).backward()
    for value in (routing.weights_TK, routing.balance_loss, routing.z_loss, x.grad):
        assert torch.isfinite(value).all()
    potentials_E = sinkhorn_potentials(x.detach(), torch.full((7,), 1 / 7), 8)
    assert torch.isfinite(potentials_E).all()


def test_sinkhorn_selects_by_the_plan_but_weighs_by_the_softmax(make_router, make_logits):
    x = make_logits() + torch.tensor([9.0, 0, 0, 0, 0, 0, 0])
    routing = make_router(router="sinkhorn").train()(x)
    assert torch.equal(routing.weights_TK, x.softmax(-1).gather(1, routing.expert_ids_TK))
    assert (routing.expert_ids_TK != 0).all(dim=-1).any()


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 50),
    k=st.integers(1, 7),
    gamma=st.sampled_from([None, 0.5, 1.0, 2.0]),
    tau=st.sampled_from([0.4, 1.0]),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_every_expert_chooses_its_capacity_of_the_tokens_that_want_it_most(
    make_router, make_logits, tokens, k, gamma, tau, scale
):
    x = make_logits(tokens, scale=scale)
    router = make_router(router="expert_choice", num_experts_per_token=k, capacity_factor=gamma, tau=tau).train()
    routing = router(x)
    capacity_E = expert_capacities(tokens * k, gamma or 1.0, tau, 4, 7).clamp_max(tokens)
    chosen_TE = torch.zeros(tokens, 7, dtype=torch.bool).scatter(1, routing.expert_ids_TK, routing.used_TK)
    assert torch.equal(chosen_TE.sum(0), capacity_E)
    assert routing.statistics.dropped_share == 0
    probabilities = x.softmax(-1)
    for e in range(7):
        refused = probabilities[~chosen_TE[:, e], e]
        assert not len(refused) or probabilities[chosen_TE[:, e], e].min() >= refused.max()


def test_a_token_that_no_expert_chose_has_no_weight_and_no_nan(make_router, make_logits):
    x = make_logits(50)
    router = make_router(router="expert_choice", num_experts_per_token=1, normalize_router_weights=True).train()
    routing = router(x.requires_grad_())
    total = routing.weights_TK.sum(-1)
    unchosen = ~routing.used_TK.any(-1)
    assert unchosen.any() and (total[unchosen] == 0).all()
    torch.testing.assert_close(total[~unchosen], torch.ones(int((~unchosen).sum())))
    routing.weights_TK.square().sum().backward()
    assert torch.isfinite(x.grad).all()
