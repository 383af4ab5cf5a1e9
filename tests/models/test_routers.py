import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.losses import balance_loss
from ava_core.models import EnhancedMoEConfig
from ava_core.models.capacity import expert_capacities, within_capacity
from ava_core.models.routers import build_router


def router(**overrides):
    fields = {"num_ffn_experts": 4, "num_zero_experts": 1, "num_copy_experts": 1, "num_constant_experts": 1}
    return build_router(EnhancedMoEConfig(**{**fields, **overrides}))


def logits(tokens=64, experts=7, scale=1.0):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0)) * scale


def test_top_k_weights_are_softmax_probabilities_of_the_k_largest():
    routing = router(num_experts_per_token=2)(logits())
    expected = logits().softmax(-1).topk(2, dim=-1)
    assert torch.equal(routing.expert_ids_TK, expected.indices)
    torch.testing.assert_close(routing.weights_TK, expected.values)
    assert routing.used_TK.all()


def test_normalized_weights_sum_to_one():
    for name in ("top_k", "confidence"):
        routing = router(router=name, normalize_router_weights=True)(logits())
        torch.testing.assert_close(routing.weights_TK.sum(-1), torch.ones(64))


def test_confidence_of_one_uses_every_expert():
    routing = router(router="confidence", confidence_threshold=1.0, max_experts_per_token=None)(logits(scale=5))
    assert routing.used_TK.all()
    assert routing.used_TK.shape[1] == 7


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_small_confidence_uses_exactly_one_expert(scale):
    routing = router(router="confidence", confidence_threshold=1e-6)(logits(scale=scale))
    assert torch.equal(routing.used_TK.sum(-1), torch.ones(64, dtype=torch.long))


def test_confidence_takes_the_fewest_experts_that_reach_the_threshold():
    routing = router(router="confidence", confidence_threshold=0.6, max_experts_per_token=None)(logits())
    chosen = routing.weights_TK.sum(-1)
    last = routing.weights_TK.masked_fill(routing.weights_TK == 0, 2).min(-1).values
    assert (chosen >= 0.6 - 1e-6).all()
    assert (chosen - last < 0.6).all()


def test_confidence_is_bounded_by_max_experts():
    routing = router(router="confidence", confidence_threshold=1.0, max_experts_per_token=3)(logits())
    assert routing.used_TK.sum(-1).max() == 3


def test_balance_loss_of_uniform_routing_is_known():
    # f_i = K / E and P_i = 1 / E for every expert
    k, n, z, tau = 2, 4, 3, 0.75
    load, probability = torch.full((7,), k / 7), torch.full((7,), 1 / 7)
    value = balance_loss(load, probability, n, tau)
    torch.testing.assert_close(value, torch.tensor(k * (n + tau * z) / 49))


def test_balance_loss_of_total_collapse_is_known():
    collapsed = torch.full((100, 7), -50.0)
    collapsed[:, 2] = 50.0
    routing = router(num_experts_per_token=1)(collapsed)
    torch.testing.assert_close(routing.balance_loss, torch.tensor(1.0))


def test_balance_loss_transcribed_by_hand():
    x, tau = logits(), 0.5
    routing = router(num_experts_per_token=2, tau=tau)(x)
    probabilities, value = x.softmax(-1), 0.0
    for i in range(7):
        f = sum(i in row for row in probabilities.topk(2).indices.tolist()) / 64
        value += (1.0 if i < 4 else tau) * f * probabilities[:, i].mean().item()
    assert routing.balance_loss.item() == pytest.approx(value, rel=1e-5)


def test_z_loss_is_the_mean_squared_logsumexp():
    routing = router()(logits())
    torch.testing.assert_close(routing.z_loss, logits().exp().sum(-1).log().square().mean())


def test_padding_counts_in_no_loss_and_no_statistic():
    x = logits()
    mask = torch.arange(64) < 40
    masked, short = router()(x, mask), router()(x[:40])
    torch.testing.assert_close(masked.balance_loss, short.balance_loss)
    torch.testing.assert_close(masked.z_loss, short.z_loss)
    for name in ("load_E", "mean_probability_E", "ffn_experts_per_token", "entropy"):
        torch.testing.assert_close(getattr(masked.statistics, name), getattr(short.statistics, name))


def test_statistics_of_uniform_logits():
    statistics = router(num_experts_per_token=7)(torch.zeros(10, 7)).statistics
    torch.testing.assert_close(statistics.entropy, torch.tensor(7.0).log())
    torch.testing.assert_close(statistics.load_E, torch.ones(7))
    assert statistics.ffn_experts_per_token == 4
    assert statistics.load_cv == 0 and statistics.dead_experts == 0
    assert statistics.dropped_share == 0


def test_capacities_follow_equation_8():
    # tau N_FFN + N_ZC = 0.5 * 4 + 2 = 4: an FFN expert gets 0.5/4, a zero-computation expert 1/4 of gamma T
    assert expert_capacities(64, 1.5, 0.5, 4, 6).tolist() == [12] * 4 + [24] * 2


def test_balanced_layer_fits_exactly_at_gamma_one():
    assert expert_capacities(70, 1.0, 1.0, 4, 7).tolist() == [10] * 7


def test_assignments_past_the_capacity_are_dropped_in_token_order():
    ids = torch.tensor([[0], [1], [0], [0], [1]])
    kept = within_capacity(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([2, 1]))
    assert kept.flatten().tolist() == [True, True, True, False, False]


def test_dropping_is_reported_and_only_happens_in_training():
    layer = router(num_experts_per_token=1, capacity_factor=1.0, tau=1.0)
    collapsed = torch.zeros(70, 7)
    collapsed[:, 0] = 9.0
    trained = layer.train()(collapsed)
    assert trained.used_TK.sum() == 10
    assert (trained.weights_TK[10:] == 0).all()
    assert trained.statistics.dropped_share.item() == pytest.approx(60 / 70)
    assert layer.eval()(collapsed).used_TK.all()


def test_padding_takes_no_capacity():
    layer = router(num_experts_per_token=1, capacity_factor=1.0, tau=1.0).train()
    collapsed = torch.zeros(20, 7)
    collapsed[:, 0] = 9.0
    mask = torch.arange(20) >= 6
    used = layer(collapsed, mask).used_TK
    assert used[6:8].all() and not used[8:].any()


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    threshold=st.floats(0.01, 1.0),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    name=st.sampled_from(["top_k", "confidence"]),
)
def test_any_routing_is_consistent(tokens, experts, k, threshold, scale, name):
    k = min(k, experts)
    layer = router(
        num_ffn_experts=experts, num_zero_experts=0, num_copy_experts=0, num_constant_experts=0,
        router=name, num_experts_per_token=k, max_experts_per_token=k, confidence_threshold=threshold,
    )  # fmt: skip
    routing = layer(logits(tokens, experts, scale))
    assert routing.expert_ids_TK.shape == (tokens, k)
    assert all(len(set(row)) == k for row in routing.expert_ids_TK.tolist())
    assert routing.used_TK[:, 0].all()
    assert torch.isfinite(routing.weights_TK).all() and (routing.weights_TK >= 0).all()
    assert (routing.weights_TK[~routing.used_TK] == 0).all()
    assert (routing.weights_TK.sum(-1) <= 1 + 1e-5).all()
    assert torch.isfinite(routing.balance_loss) and torch.isfinite(routing.z_loss)
    torch.testing.assert_close(routing.statistics.load_E.sum() * tokens, routing.used_TK.sum().float())


def test_collapse_shows_as_dead_experts_and_uneven_load():
    logits = torch.zeros(100, 7)
    logits[:, :2] = 50.0
    statistics = router(num_experts_per_token=2)(logits).statistics
    assert statistics.dead_experts == 5
    torch.testing.assert_close(statistics.load_cv, torch.tensor((5 / 2) ** 0.5))  # two loads of 1, five of 0
