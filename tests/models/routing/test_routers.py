"""What holds for every router."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.config.routing import ROUTERS as ALLOWED
from ava_core.models.routing import ROUTERS
from ava_core.runtime.code import code_of
from ava_core.steps.table import STEPS

ALL = pytest.mark.parametrize("name", ROUTERS)


def fill(logits, kind):
    """The drawn logits, or a special case of them."""
    if kind == "equal":
        return torch.zeros_like(logits)
    if kind == "one expert for all":
        return logits + 50 * torch.nn.functional.one_hot(torch.tensor(logits.shape[1] - 1), logits.shape[1])
    return logits


def test_every_router_that_is_allowed_exists():
    assert tuple(ROUTERS) == ALLOWED


def test_every_router_is_among_the_code_that_can_change_a_training():
    code = code_of(STEPS["train"]).files
    assert {f"ava_core.models.routing.{name}" for name in ROUTERS} <= code.keys()


@ALL
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 4),
    k=st.integers(1, 12),
    threshold=st.floats(0.01, 1.0),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    kind=st.sampled_from(["random", "equal", "one expert for all"]),
    gamma=st.sampled_from([None, 0.5, 1.5]),
    normalize=st.booleans(),
    training=st.booleans(),
    padded=st.booleans(),
)
def test_any_routing_is_consistent(
    make_router,
    make_logits,
    name,
    tokens,
    groups,
    per_group,
    k,
    threshold,
    scale,
    kind,
    gamma,
    normalize,
    training,
    padded,
):
    E = groups * per_group
    k = min(k, E)
    router = make_router(
        num_ffn_experts=(E + 1) // 2, num_zero_experts=E // 2, num_copy_experts=0, num_constant_experts=0,
        router=name, num_experts_per_token=k, max_experts_per_token=k, confidence_threshold=threshold,
        num_expert_groups=groups, num_groups_per_token=groups, capacity_factor=gamma,
        normalize_router_weights=normalize,
    ).train(training)  # fmt: skip
    width = E + groups if name == "hierarchical" and groups > 1 else E
    mask = torch.arange(tokens) % 3 != 1 if padded else None
    routing = router(fill(make_logits(tokens, width, scale), kind), mask)
    ids, used, weights, statistics = routing.expert_ids_TK, routing.used_TK, routing.weights_TK, routing.statistics

    assert ids.shape == used.shape == weights.shape
    assert ids.shape[0] == tokens and ids.min() >= 0 and ids.max() < E
    assert all(len(set(row)) == ids.shape[1] for row in ids.tolist())
    assert torch.isfinite(weights).all() and (weights >= 0).all()
    assert (weights[~used] == 0).all()
    assert (weights.sum(-1) <= 1 + 1e-5).all()
    assert routing.logits_TE.shape == (tokens, E)
    assert torch.isfinite(routing.balance_loss) and torch.isfinite(routing.z_loss)

    # The loads count what was chosen, so what is used and what was dropped.
    counted = tokens if mask is None else int(mask.sum())
    real = used if mask is None else used & mask[:, None]
    assert 0 <= statistics.dropped_share <= 1
    assert (statistics.load_E >= 0).all() and (statistics.load_E <= 1).all()
    if counted:
        chosen = statistics.load_E.sum() * counted
        torch.testing.assert_close(chosen * (1 - statistics.dropped_share), real.sum().float(), rtol=1e-4, atol=1e-3)
        ffn = (real & (ids < (E + 1) // 2)).sum() / counted
        torch.testing.assert_close(statistics.ffn_experts_per_token, ffn, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(statistics.mean_probability_E.sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)
    if not training and name != "confidence":
        assert used.all() and ids.shape[1] == k


@ALL
def test_normalized_weights_of_a_token_sum_to_one(make_router, make_logits, name):
    routing = make_router(router=name, normalize_router_weights=True).eval()(make_logits())
    torch.testing.assert_close(routing.weights_TK.sum(-1), torch.ones(64))


@ALL
@pytest.mark.parametrize("training", [True, False])
def test_padding_counts_in_no_loss_and_no_statistic(make_router, make_logits, name, training):
    router, x = make_router(router=name).train(training), make_logits()
    mask = torch.arange(64) < 40
    masked, short = router(x, mask), router(x[:40])
    torch.testing.assert_close(masked.balance_loss, short.balance_loss)
    torch.testing.assert_close(masked.z_loss, short.z_loss)
    for figure in ("load_E", "mean_probability_E", "ffn_experts_per_token", "entropy"):
        torch.testing.assert_close(getattr(masked.statistics, figure), getattr(short.statistics, figure))


@ALL
def test_a_tokens_experts_in_evaluation_depend_on_no_other_token(make_router, make_logits, name):
    router, x = make_router(router=name, capacity_factor=0.5).eval(), make_logits()
    whole, order = router(x), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    alone = [router(x[t : t + 1]) for t in range(64)]
    shuffled = router(x[order])
    for field in ("expert_ids_TK", "weights_TK", "used_TK"):
        assert torch.equal(torch.cat([getattr(one, field) for one in alone]), getattr(whole, field))
        assert torch.equal(getattr(shuffled, field), getattr(whole, field)[order])


@ALL
def test_gate_values_are_the_probabilities_whatever_chose_the_experts(make_router, make_logits, name):
    router, x = make_router(router=name).train(), make_logits()
    routing = router(x)
    expected = x.softmax(-1).gather(1, routing.expert_ids_TK) * routing.used_TK
    assert torch.equal(routing.weights_TK, expected)


@ALL
def test_float64_logits_are_routed_in_float64_and_bfloat16_ones_in_float32(make_router, make_logits, name):
    for given_type, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        routing = make_router(router=name).train()(make_logits().to(given_type))
        assert routing.weights_TK.dtype == routing.balance_loss.dtype == routing.z_loss.dtype == kept
