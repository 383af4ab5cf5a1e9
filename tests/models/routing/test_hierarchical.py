import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.models import EnhancedMoEConfig
from ava_core.models.routing import build_router


def router(experts=12, **overrides):
    fields = {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0}
    return build_router(EnhancedMoEConfig(router="hierarchical", num_ffn_experts=experts, **fields, **overrides))


@settings(max_examples=20, deadline=None)
@given(
    k=st.integers(1, 7),
    normalize=st.booleans(),
    gamma=st.sampled_from([None, 0.7]),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_one_group_is_top_k_number_for_number(make_router, make_logits, k, normalize, gamma, scale):
    fields = {"num_experts_per_token": k, "normalize_router_weights": normalize, "capacity_factor": gamma}
    x = make_logits(scale=scale)
    grouped = make_router(router="hierarchical", num_expert_groups=1, **fields).train()(x)
    plain = make_router(router="top_k", **fields).train()(x)
    for name in ("expert_ids_TK", "weights_TK", "used_TK", "logits_TE", "balance_loss", "z_loss"):
        assert torch.equal(getattr(grouped, name), getattr(plain, name))


def test_probability_is_the_product_of_both_gates_by_hand(make_logits):
    x = make_logits(5, 3 + 12)
    scores = router(num_expert_groups=3).score(x)
    for t in range(5):
        group = x[t, :3].softmax(-1)
        for e in range(12):
            g = e // 4
            inside = x[t, 3 + 4 * g : 3 + 4 * g + 4].softmax(-1)
            assert scores.probabilities_TE[t, e].item() == pytest.approx((group[g] * inside[e % 4]).item(), rel=1e-5)
    torch.testing.assert_close(scores.logits_TE.exp(), scores.probabilities_TE)
    torch.testing.assert_close(scores.probabilities_TE.sum(-1), torch.ones(5))


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([2, 3, 4, 6, 12]),
    open_groups=st.integers(1, 12),
    k=st.integers(1, 12),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
)
def test_experts_come_from_the_best_groups_and_are_the_best_of_them(make_logits, groups, open_groups, k, scale):
    open_groups = min(open_groups, groups)
    k = min(k, open_groups * 12 // groups)
    x = make_logits(20, groups + 12, scale)
    fields = {"num_expert_groups": groups, "num_groups_per_token": open_groups, "num_experts_per_token": k}
    routing = router(**fields)(x)
    size = 12 // groups
    best_TG = x[:, :groups].topk(open_groups, dim=-1).indices
    for t in range(20):
        allowed = [e for e in range(12) if e // size in best_TG[t]]
        expected = sorted(allowed, key=lambda e: -routing.logits_TE[t, e].item())[:k]
        assert set(routing.expert_ids_TK[t].tolist()) == set(expected)


def test_closed_groups_take_no_token_though_their_expert_is_the_likeliest():
    # Group 0 wins with 0.6; its four experts share it, so the lone favourite of group 1 has the larger product, 0.4.
    logits = torch.tensor([0.6, 0.4, 1e-9]).log().repeat(1, 1)
    logits = torch.cat((logits, torch.zeros(1, 4), torch.tensor([[50.0, 0, 0, 0]]), torch.zeros(1, 4)), dim=1)
    one, two = (router(num_expert_groups=3, num_groups_per_token=g, num_experts_per_token=1)(logits) for g in (1, 2))
    assert one.expert_ids_TK.item() < 4
    assert two.expert_ids_TK.item() == 4
    torch.testing.assert_close(two.weights_TK, torch.tensor([[0.4]]))


def test_z_loss_is_the_mean_over_all_gates(make_logits):
    x = make_logits(9, 2 + 12)
    sums = torch.stack([part.logsumexp(-1) for part in (x[:, :2], x[:, 2:8], x[:, 8:])])
    torch.testing.assert_close(router(num_expert_groups=2)(x).z_loss, sums.square().mean())


def test_gradients_reach_both_gates_and_stay_finite_at_huge_logits(make_logits):
    for scale in (1.0, 1e4):
        x = make_logits(30, 3 + 12, scale).requires_grad_()
        routing = router(num_expert_groups=3, num_groups_per_token=2)(x)
        (routing.weights_TK.square().sum() + routing.balance_loss + 1e-9 * routing.z_loss).backward()
        assert torch.isfinite(x.grad).all()
        assert x.grad[:, :3].abs().sum() > 0 and x.grad[:, 3:].abs().sum() > 0
