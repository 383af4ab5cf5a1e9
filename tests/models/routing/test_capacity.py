import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.models.routing.capacity import expert_capacities, expert_shares, within_capacity


def test_capacities_follow_equation_8():
    # tau N_FFN + N_ZC = 0.5 * 4 + 2 = 4: an FFN expert gets 0.5/4, a zero-computation expert 1/4 of gamma T
    assert expert_capacities(64, 1.5, 0.5, 4, 6).tolist() == [12] * 4 + [24] * 2


def test_balanced_layer_fits_exactly_at_gamma_one():
    assert expert_capacities(70, 1.0, 1.0, 4, 7).tolist() == [10] * 7


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1.0), st.integers(1, 9), st.integers(0, 9))
def test_shares_sum_to_one_and_stand_as_tau_to_one(tau, ffn, zero_computation):
    shares_E = expert_shares(tau, ffn, ffn + zero_computation)
    assert shares_E.sum().item() == pytest.approx(1)
    if zero_computation:
        assert (shares_E[0] / shares_E[-1]).item() == pytest.approx(tau)


def test_assignments_past_the_capacity_are_dropped_in_token_order():
    ids = torch.tensor([[0], [1], [0], [0], [1]])
    kept = within_capacity(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([2, 1]))
    assert kept.flatten().tolist() == [True, True, True, False, False]


def test_dropping_is_reported_and_only_happens_in_training(make_router):
    router = make_router(num_experts_per_token=1, capacity_factor=1.0, tau=1.0)
    collapsed = torch.zeros(70, 7)
    collapsed[:, 0] = 9.0
    trained = router.train()(collapsed)
    assert trained.used_TK.sum() == 10
    assert (trained.weights_TK[10:] == 0).all()
    assert trained.statistics.dropped_share.item() == pytest.approx(60 / 70)
    assert trained.statistics.load_E[0] == 1  # the load is what was asked for
    assert trained.statistics.ffn_experts_per_token.item() == pytest.approx(10 / 70)  # this is what was evaluated
    assert router.eval()(collapsed).used_TK.all()


def test_padding_takes_no_capacity(make_router):
    router = make_router(num_experts_per_token=1, capacity_factor=1.0, tau=1.0).train()
    collapsed = torch.zeros(20, 7)
    collapsed[:, 0] = 9.0
    mask = torch.arange(20) >= 6
    used = router(collapsed, mask).used_TK
    assert used[6:8].all() and not used[8:].any()


TOKEN_CHOICE = ["top_k", "confidence", "sinkhorn", "hierarchical", "expert_bias"]


@pytest.mark.parametrize("name", TOKEN_CHOICE)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 50),
    k=st.integers(1, 7),
    gamma=st.floats(0.1, 2.0),
    tau=st.sampled_from([0.3, 1.0]),
    scale=st.sampled_from([0.0, 2.0, 1e4]),
    padded=st.booleans(),
)
def test_an_expert_drops_only_what_is_past_its_capacity(
    make_router, make_logits, name, tokens, k, gamma, tau, scale, padded
):
    router = make_router(
        router=name, num_experts_per_token=k, max_experts_per_token=k, capacity_factor=gamma, tau=tau
    ).train()
    mask = torch.arange(tokens) % 3 != 1 if padded else torch.ones(tokens, dtype=torch.bool)
    free = make_router(router=name, num_experts_per_token=k, max_experts_per_token=k, tau=tau).train()
    routing, wanted = router(make_logits(tokens, 7, scale), mask), free(make_logits(tokens, 7, scale), mask)
    assert torch.equal(routing.expert_ids_TK, wanted.expert_ids_TK)
    assert (routing.used_TK <= wanted.used_TK).all()
    asked = torch.bincount(routing.expert_ids_TK[wanted.used_TK & mask[:, None]], minlength=7)
    kept = torch.bincount(routing.expert_ids_TK[routing.used_TK & mask[:, None]], minlength=7)
    assert torch.equal(kept, torch.minimum(asked, expert_capacities(int(asked.sum()), gamma, tau, 4, 7)))
