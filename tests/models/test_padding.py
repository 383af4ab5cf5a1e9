"""Padding takes part in nothing: logits, losses, statistics, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.models.routing import Routes
from tests.models.conftest import build

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def labels_of(inputs):
    """Labels of real tokens; not of each row's first, which padding would predict."""
    mask = inputs["attention_mask"].bool()
    after_a_token = torch.nn.functional.pad(mask[:, :-1], (1, 0))
    return inputs["input_ids"].masked_fill(~(mask & after_a_token), -100)


def padded(model, tokens, left=0, right=0):
    """Token ids and mask of `tokens` with padding around them."""
    batch = torch.nn.functional.pad(tokens, (left, right), value=model.config.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (left, right))
    return {"input_ids": batch, "attention_mask": mask}


def padded_routes(routes, tokens, left):
    """The same routes for `tokens` with `left` of padding before each row, which goes to the first experts."""
    rows, slots = len(tokens), routes.expert_ids_TK.shape[-1]

    def before(values, of_padding):
        of_padding = of_padding.expand(rows, left, slots).to(values.dtype)
        return torch.cat([of_padding, values.view(rows, -1, slots)], dim=1).view(-1, slots)

    return Routes(
        expert_ids_TK=before(routes.expert_ids_TK, torch.arange(slots)),
        used_TK=before(routes.used_TK, torch.tensor(True)),
        selected_TK=before(routes.selected_TK, torch.tensor(True)),
    )


@pytest.mark.parametrize("given_positions", [False, True])
@pytest.mark.parametrize("router", ["top_k", "confidence"])
def test_left_padding_changes_nothing(make_model, tokens, given_positions, router):
    model = make_model(router=router)
    inputs = padded(model, tokens, left=4)
    if given_positions:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    out, plain = model(**inputs), model(tokens)
    torch.testing.assert_close(out.logits[:, 4:], plain.logits, **CLOSE)
    torch.testing.assert_close(out.aux_loss, plain.aux_loss, **CLOSE)
    for a, b in zip(out.router_statistics, plain.router_statistics, strict=True):
        torch.testing.assert_close(a.load_E, b.load_E)
        torch.testing.assert_close(a.ffn_experts_per_token, b.ffn_experts_per_token)


@given(left=st.integers(0, 5), right=st.integers(0, 5), implementation=st.sampled_from(["looped", "dense"]))
@settings(deadline=None, max_examples=8)
def test_any_amount_of_padding_gives_the_same_logits_and_loss(left, right, implementation):
    model = build(num_layers=2, experts_implementation=implementation)
    tokens = torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(left))
    inputs = padded(model, tokens, left, right)
    out, plain = model(**inputs, labels=labels_of(inputs)), model(tokens, labels=tokens)
    torch.testing.assert_close(out.logits[:, left : left + 6], plain.logits, **CLOSE)
    torch.testing.assert_close(out.loss, plain.loss, **CLOSE)


def gradients(model, **inputs):
    """Gradients, and where the tokens went."""
    model.zero_grad()
    output = model(**inputs, output_routes=True)
    output.loss.backward()
    return {name: weight.grad.float() for name, weight in model.named_parameters()}, output.routes


def test_gradients_dont_depend_on_padding(model, tokens):
    plain, _ = gradients(model, input_ids=tokens, labels=tokens)
    inputs = padded(model, tokens, left=3)
    found, _ = gradients(model, **inputs, labels=labels_of(inputs))
    for name, grad in found.items():
        torch.testing.assert_close(grad, plain[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("seed", range(4))
def test_gradients_in_bfloat16_dont_depend_on_padding_but_for_rounding(seed):
    model = build(seed=seed).bfloat16()
    tokens = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(seed))
    plain, routes = gradients(model, input_ids=tokens, labels=tokens)
    inputs = padded(model, tokens, left=3)
    # The same routes: rounding would send a token to another of two nearly equal experts.
    same = [padded_routes(layer, tokens, left=3) for layer in routes]
    found, _ = gradients(model, **inputs, labels=labels_of(inputs), routes=same)
    for name, grad in found.items():
        assert (grad - plain[name]).norm() <= 0.1 * plain[name].norm() + 1e-3, name


def test_what_stands_in_the_padding_makes_no_difference(model, tokens):
    inputs = padded(model, tokens, left=3)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, :3] = 7
    torch.testing.assert_close(model(**other).logits[:, 3:], model(**inputs).logits[:, 3:], **CLOSE)


def test_rows_of_different_length_equal_each_alone(model, tokens):
    inputs = padded(model, tokens)
    inputs["attention_mask"][1, :5] = 0
    out = model(**inputs).logits
    torch.testing.assert_close(out[0], model(tokens[:1]).logits[0], **CLOSE)
    torch.testing.assert_close(out[1, 5:], model(tokens[1:, 5:]).logits[0], **CLOSE)
