"""Converted models compute what the original computes."""

import pytest
import torch
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from ava_core.models.conversion import from_transformers, to_transformers

EXACT = {"rtol": 0, "atol": 1e-5}
KINDS = ("olmoe", "mixtral", "qwen3_moe")
NORMALISES = [("olmoe", False), ("olmoe", True), ("mixtral", None), ("qwen3_moe", False), ("qwen3_moe", True)]


def norm_field(normalise):
    return {} if normalise is None else {"norm_topk_prob": normalise}


@torch.no_grad()
def logits(model, tokens, **inputs):
    return model(tokens, **inputs).logits


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("kind, normalise", NORMALISES)
def test_logits_are_those_of_transformers_in_both_directions(kind, normalise, key_value_heads, make_theirs, tokens):
    theirs = make_theirs(kind, num_key_value_heads=key_value_heads, **norm_field(normalise))
    ours = from_transformers(theirs)
    back = to_transformers(ours, kind)
    expected = logits(theirs, tokens)
    assert expected.std() > 0.5  # else any two models would be close
    torch.testing.assert_close(logits(ours, tokens), expected, **EXACT)
    torch.testing.assert_close(logits(back, tokens), logits(ours, tokens), **EXACT)


@pytest.mark.parametrize("kind, normalise", NORMALISES)
def test_logits_agree_under_left_and_right_padding(kind, normalise, make_theirs, tokens):
    theirs = make_theirs(kind, **norm_field(normalise))
    ours = from_transformers(theirs)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    mask[1, 11:] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    inputs = {"attention_mask": mask, "position_ids": positions}
    seen = mask.bool()
    torch.testing.assert_close(logits(ours, tokens, **inputs)[seen], logits(theirs, tokens, **inputs)[seen], **EXACT)
    plain = logits(ours, tokens)[0]
    assert (logits(ours, tokens, **inputs)[0, 5:] - plain[5:]).abs().max() > 1e-2  # the mask had an effect


@pytest.mark.parametrize("kind, normalise", NORMALISES)
def test_gradients_are_those_of_transformers(kind, normalise, make_theirs, tokens):
    theirs = make_theirs(kind, **norm_field(normalise))
    ours = from_transformers(theirs)
    for model in (theirs, ours):
        out = model(tokens).logits
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean().backward()
    gradients = {name.replace(".moe.", ".mlp."): p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not gradients


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_gives_the_same_tokens(kind, make_theirs, tokens):
    theirs = make_theirs(kind)
    ours = from_transformers(theirs)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    expected = theirs.generate(tokens, **options)
    assert torch.equal(ours.generate(tokens, **options), expected)
    assert torch.equal(to_transformers(ours, kind).generate(tokens, **options), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
def test_loss_with_balance_loss_of_one_layer_is_that_of_transformers(kind, padded, make_theirs, tokens):
    theirs = make_theirs(kind, num_hidden_layers=1, router_aux_loss_coef=0.3)
    ours = from_transformers(theirs)
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :5] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    inputs = {"attention_mask": mask, "labels": labels, "output_router_logits": True}
    a, b = ours(tokens, **inputs), theirs(tokens, **inputs)
    torch.testing.assert_close(a.loss, b.loss, **EXACT)
    # Transformers' value carries a factor E that MoE++ (eq. 7) lacks; the weights differ by it.
    torch.testing.assert_close(5 * a.loss_parts["balance_loss"], b.aux_loss, **EXACT)
    torch.testing.assert_close(a.aux_loss, 0.3 * b.aux_loss, **EXACT)


def test_balance_loss_of_several_layers_is_the_mean_of_each_layers_own(make_theirs, tokens):
    theirs = make_theirs("olmoe", num_hidden_layers=3)
    with torch.no_grad():
        theirs.model.layers[1].mlp.gate.weight[1:] = 0  # one layer collapses
        theirs.model.layers[1].mlp.gate.weight[0] = 0
    ours = from_transformers(theirs)(tokens, labels=tokens).loss_parts["balance_loss"]
    router_logits = theirs(tokens, output_router_logits=True).router_logits
    each = torch.stack([load_balancing_loss_func((one,), num_experts=5, top_k=2) for one in router_logits])
    torch.testing.assert_close(5 * ours, each.mean(), **EXACT)
    # Transformers mixes f and P of the layers first, so that the layers can hide one another's imbalance.
    assert load_balancing_loss_func(router_logits, num_experts=5, top_k=2) < each.mean() - 1e-3


def test_bfloat16_logits_are_close(make_theirs, tokens):
    theirs = make_theirs("qwen3_moe").to(torch.bfloat16)
    ours = from_transformers(theirs)
    assert ours.dtype == torch.bfloat16
    close = (logits(ours, tokens).float() - logits(theirs, tokens).float()).abs() < 0.1
    assert close.float().mean() > 0.9  # the rest are tokens whose experts are a near-tie in bfloat16
