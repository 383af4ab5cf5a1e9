"""Routes that are recorded in one pass and replayed in another."""

import pytest
import torch

from ava_core.generation.rollout import Rollout, record_routes

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def same(a, b):
    return all(
        torch.equal(x.expert_ids_TK, y.expert_ids_TK)
        and torch.equal(x.used_TK, y.used_TK)
        and torch.equal(x.selected_TK, y.selected_TK)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(params=["top_k", "confidence"])
def any_model(request, make_model):
    return make_model(router=request.param)


def test_routes_are_returned_on_demand_one_per_layer(any_model, tokens):
    assert any_model(tokens).routes is None
    routes = any_model(tokens, output_routes=True).routes
    assert len(routes) == 3
    assert all(layer.expert_ids_TK.shape == (24, any_model.config.max_slots) for layer in routes)


def test_replay_of_own_routes_gives_the_same_logits(any_model, tokens):
    out = any_model(tokens, output_routes=True)
    assert torch.equal(any_model(tokens, routes=out.routes).logits, out.logits)


def test_training_pass_reuses_the_routes_of_an_earlier_pass(any_model, tokens):
    """Weights have changed in between: the experts are the recorded ones, the gate values and gradients are new."""
    with torch.no_grad():
        routes = any_model(tokens, output_routes=True).routes
        for layer in any_model.model.layers:
            layer.moe.gate.weight.add_(torch.randn_like(layer.moe.gate.weight))
    any_model.train()
    own = any_model(tokens, output_routes=True)
    out = any_model(tokens, labels=tokens, routes=routes, output_routes=True, output_router_logits=True)
    out.loss.backward()
    assert not same(own.routes, routes)
    assert same(out.routes, routes)
    for layer, recorded in enumerate(routes):
        chosen = out.router_choices[layer].sum(0)
        expected = torch.bincount(recorded.expert_ids_TK[recorded.used_TK], minlength=8)
        assert torch.equal(chosen, expected)
        assert any_model.model.layers[layer].moe.gate.weight.grad.abs().sum() > 0


def test_routes_of_a_rollout_are_those_of_its_passes(any_model, tokens):
    with record_routes(any_model) as rollout:
        sequences = any_model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=True)
    routes = rollout.routes(sequences)
    own = any_model(sequences[:, :-1], output_routes=True).routes  # no near-ties here: the same choices
    assert same(routes, own)
    any_model.train()
    out = any_model(sequences[:, :-1], labels=sequences[:, :-1], routes=routes, output_routes=True)
    out.loss.backward()
    assert same(out.routes, routes)


def test_rollout_of_a_padded_batch_is_replayed_with_its_mask(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": True}
    with record_routes(model) as rollout:
        sequences = model.generate(tokens, attention_mask=mask, **options)
    mask = torch.nn.functional.pad(mask, (0, 4), value=1)
    out = model(sequences[:, :-1], attention_mask=mask, routes=rollout.routes(sequences))
    torch.testing.assert_close(out.logits, model(sequences[:, :-1], attention_mask=mask).logits, **CLOSE)


def test_recording_ends_with_its_block(model, tokens):
    with record_routes(model) as rollout:
        model(tokens)
    assert model(tokens).routes is None
    assert len(rollout.routes(tokens)) == 3


def test_rollout_refuses_sequences_that_the_model_didnt_read(model, tokens):
    with record_routes(model) as rollout:
        sequences = model.generate(tokens, num_beams=4, max_new_tokens=8, min_new_tokens=8, num_return_sequences=1)
    with pytest.raises(ValueError, match="sequences: must begin with the ids that the model read"):
        rollout.routes(sequences)
    with pytest.raises(ValueError, match="rollout: must hold a forward pass"):
        Rollout().routes(tokens)


def test_routes_that_dont_fit_are_refused(model, tokens):
    routes = model(tokens, output_routes=True).routes
    with pytest.raises(ValueError, match="routes = 2 layers: must be the model's 3"):
        model(tokens, routes=routes[:2])
    with pytest.raises(ValueError, match="24 tokens: must be as many as are routed, 10"):
        model(tokens[:, :5], routes=routes)
