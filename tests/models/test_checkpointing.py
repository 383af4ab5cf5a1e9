"""Recomputation in the backward pass: same gradients, same routes, nothing counted twice."""

import pytest
import torch

from ava_core.models.routing.confidence import ConfidenceRouter
from ava_core.models.routing.top_k import TopKRouter

NOISY = {"dropout": 0.1, "router_jitter": 0.05, "capacity_factor": 1.0}


def train_pass(model, tokens, reentrant=None, **inputs):
    """Output and gradients of one pass with fixed noise; `reentrant` None keeps all activations."""
    model.train()
    model.zero_grad()
    model.gradient_checkpointing_disable()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    torch.manual_seed(7)
    output = model(tokens, labels=tokens, **inputs)
    output.loss.backward()
    return output, {name: weight.grad.clone() for name, weight in model.named_parameters()}


def shift_choices(monkeypatch, router):
    """Let the router choose other experts from its fourth call on: the model's three layers, then recomputation."""
    plain, calls = router.select, []

    def select(self, *arguments):
        ids_TK, chosen_TK = plain(self, *arguments)
        calls.append(None)
        return (ids_TK + (len(calls) > 3)) % self.num_experts, chosen_TK

    monkeypatch.setattr(router, "select", select)
    return calls


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("router", ["top_k", "confidence", "sinkhorn", "expert_choice"])
def test_gradients_and_figures_are_exactly_those_without_recomputation(make_model, tokens, router, dtype, reentrant):
    model = make_model(router=router, **NOISY).to(dtype)
    plain, plain_gradients = train_pass(model, tokens)
    again, gradients = train_pass(model, tokens, reentrant)
    assert torch.equal(plain.loss, again.loss)
    for name, part in plain.loss_parts.items():
        assert torch.equal(part, again.loss_parts[name]), name
    for name, gradient in plain_gradients.items():
        assert torch.equal(gradient, gradients[name]), name
    for a, b in zip(plain.router_statistics, again.router_statistics, strict=True):
        assert torch.equal(a.load_E, b.load_E)
        assert torch.equal(a.dropped_share, b.dropped_share)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("name", "router"), [("top_k", TopKRouter), ("confidence", ConfidenceRouter)])
def test_recomputation_uses_the_recorded_routes(make_model, tokens, monkeypatch, name, router, reentrant):
    """A router that would choose otherwise in the backward pass (a near-tie does) isn't asked again."""
    model = make_model(router=name)
    _, plain_gradients = train_pass(model, tokens)
    calls = shift_choices(monkeypatch, router)
    _, gradients = train_pass(model, tokens, reentrant)
    assert len(calls) == 3
    for key, gradient in plain_gradients.items():
        assert torch.equal(gradient, gradients[key]), key


def test_without_the_tape_the_same_router_would_drift(make_model, tokens, monkeypatch):
    """The test above could fail: with routes forgotten between the passes, gradients differ.

    Dense, because with sparse experts PyTorch itself notices that the shapes differ.
    """
    model = make_model(experts_implementation="dense")
    _, plain_gradients = train_pass(model, tokens)
    calls = shift_choices(monkeypatch, TopKRouter)
    monkeypatch.setattr(type(model.model), "_tapes", lambda self, _routes: [None] * len(self.layers))
    _, gradients = train_pass(model, tokens, reentrant=False)
    assert len(calls) == 6
    assert any(not torch.equal(gradient, gradients[key]) for key, gradient in plain_gradients.items())


def test_recomputation_of_given_routes_replays_them(make_model, tokens):
    model = make_model()
    routes = model(tokens, output_routes=True).routes
    plain, plain_gradients = train_pass(model, tokens, routes=routes)
    again, gradients = train_pass(model, tokens, False, routes=routes, output_routes=True)
    assert torch.equal(plain.loss, again.loss)
    assert all(kept is given for kept, given in zip(again.routes, routes, strict=True))
    for name, gradient in plain_gradients.items():
        assert torch.equal(gradient, gradients[name]), name


def test_two_passes_of_one_model_dont_share_routes(make_model, tokens):
    """Accumulation: both forward passes run before the first backward pass."""
    model = make_model().train()
    other = tokens.flip(1)
    expected = [train_pass(model, batch)[1] for batch in (tokens, other)]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    losses = [model(batch, labels=batch).loss for batch in (tokens, other)]
    sum(losses).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[0][name] + expected[1][name], msg=name)


def test_inputs_that_need_gradients_get_the_same_ones(make_model, tokens):
    model = make_model()
    gradients = []
    for reentrant in (None, True, False):
        embeds = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model.train()
        model.gradient_checkpointing_disable()
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model(inputs_embeds=embeds, labels=tokens).loss.backward()
        gradients.append(embeds.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
