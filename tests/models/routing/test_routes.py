"""Recording routes and replaying them."""

import pytest
import torch

from ava_core.models.routing import ROUTERS, RouteTape

ALL = pytest.mark.parametrize("name", ROUTERS)


def fields(name):
    groups = {"num_constant_experts": 2, "num_expert_groups": 4, "num_groups_per_token": 2}
    return {
        "router": name,
        "capacity_factor": 0.8,
        "num_experts_per_token": 2,
        **(groups if name == "hierarchical" else {}),
    }


def width(name):
    return 4 + 8 if name == "hierarchical" else 7


@ALL
def test_an_empty_tape_changes_nothing_and_then_holds_what_was_chosen(make_router, make_logits, name):
    router, x, tape = make_router(**fields(name)).train(), make_logits(40, width(name)), RouteTape()
    plain, recorded = router(x), router(x, tape=tape)
    assert torch.equal(plain.weights_TK, recorded.weights_TK)
    assert torch.equal(tape.routes.expert_ids_TK, recorded.expert_ids_TK)
    assert torch.equal(tape.routes.used_TK, recorded.used_TK)
    assert (tape.routes.used_TK <= tape.routes.selected_TK).all()


@ALL
def test_replay_of_the_same_logits_is_the_same_in_values_and_gradients(make_router, make_logits, name):
    router, tape = make_router(**fields(name), normalize_router_weights=True).train(), RouteTape()
    results = []
    for _ in range(2):
        x = make_logits(40, width(name)).requires_grad_()
        routing = router(x, tape=tape)
        (routing.weights_TK.square().sum() + routing.balance_loss + routing.z_loss).backward()
        results.append((routing, x.grad))
    (first, first_grad), (second, second_grad) = results
    assert torch.equal(first_grad, second_grad)
    for field in ("expert_ids_TK", "used_TK", "weights_TK", "balance_loss", "z_loss"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    for field in ("load_E", "ffn_experts_per_token", "entropy", "dropped_share"):
        assert torch.equal(getattr(first.statistics, field), getattr(second.statistics, field))


@ALL
def test_replay_keeps_the_choice_and_weighs_it_by_the_new_logits(make_router, make_logits, name):
    router, tape = make_router(**fields(name)).train(), RouteTape()
    first = router(make_logits(40, width(name)), tape=tape)
    other = make_logits(40, width(name), seed=9)
    replayed, free = router(other, tape=tape), router(other)
    assert torch.equal(replayed.expert_ids_TK, first.expert_ids_TK)
    assert torch.equal(replayed.used_TK, first.used_TK)
    assert not torch.equal(free.used_TK, first.used_TK) or not torch.equal(free.expert_ids_TK, first.expert_ids_TK)
    probabilities_TE = router.score(other).probabilities_TE
    assert torch.equal(replayed.weights_TK, probabilities_TE.gather(1, first.expert_ids_TK) * first.used_TK)
    torch.testing.assert_close(replayed.statistics.load_E, first.statistics.load_E)


@ALL
def test_routes_of_a_rollout_in_evaluation_replay_in_training(make_router, make_logits, name):
    router, tape = make_router(**fields(name)).eval(), RouteTape()
    rollout = router(make_logits(40, width(name)), tape=tape)
    trained = router.train()(make_logits(40, width(name)), tape=tape)
    assert torch.equal(trained.weights_TK, rollout.weights_TK)
    assert trained.statistics.dropped_share == 0


def test_recorded_routes_of_other_tokens_are_refused(make_router, make_logits):
    router, tape = make_router(), RouteTape()
    router(make_logits(5), tape=tape)
    with pytest.raises(ValueError, match=r"^routes.expert_ids_TK = 5 tokens: must be as many as are routed, 6"):
        router(make_logits(6), tape=tape)


def test_routes_carry_no_gradient_and_a_selection_makes_none(make_router, make_logits):
    tape = RouteTape()
    make_router(router="sinkhorn").train()(make_logits().requires_grad_(), tape=tape)
    for value in (tape.routes.expert_ids_TK, tape.routes.used_TK, tape.routes.selected_TK):
        assert not value.requires_grad
