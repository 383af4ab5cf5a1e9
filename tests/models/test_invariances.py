"""What must not change a token's logits."""

import pytest
import torch
from transformers import DynamicCache

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
MODELS = {
    "top_k": {"router": "top_k"},
    "confidence": {"router": "confidence"},
    "without residuals": {"gating_residuals": False},
    "only FFN experts": {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0},
    "renormalised, shared": {"normalize_router_weights": True, "num_shared_experts": 1},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def any_model(request, make_model):
    return make_model(**request.param)


def test_order_of_the_batch_only_orders_the_logits(any_model):
    tokens = torch.randint(3, 61, (5, 9), generator=torch.Generator().manual_seed(2))
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(any_model(tokens[order]).logits, any_model(tokens).logits[order], **CLOSE)


def test_a_sequence_doesnt_depend_on_the_others_in_its_batch(any_model, tokens):
    torch.testing.assert_close(any_model(tokens).logits[1:], any_model(tokens[1:]).logits, **CLOSE)


def test_one_token_at_a_time_equals_all_at_once(any_model, tokens):
    cache, steps = DynamicCache(config=any_model.config), []
    for position in range(tokens.shape[1]):
        out = any_model(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), any_model(tokens).logits, **CLOSE)


def test_keeping_a_cache_changes_nothing(any_model, tokens):
    assert torch.equal(any_model(tokens, use_cache=True).logits, any_model(tokens, use_cache=False).logits)


def test_no_position_sees_the_future(any_model, tokens):
    changed = tokens.clone()
    changed[:, 7:] = 5
    torch.testing.assert_close(any_model(changed).logits[:, :7], any_model(tokens).logits[:, :7], **CLOSE)


def test_a_shift_of_all_positions_changes_nothing(any_model, tokens):
    shifted = torch.arange(12)[None] + 1000
    tolerance = {"rtol": 1e-3, "atol": 1e-3}  # cos(1000 + x) is rounded otherwise than cos(x)
    torch.testing.assert_close(any_model(tokens, position_ids=shifted).logits, any_model(tokens).logits, **tolerance)
