import pytest
import torch
from torch.nn import functional as F

from ava_core import kernels
from tests.kernels.conftest import assert_close, exact, random


def document_mask(ids_BS):
    """Where each document begins, at each of its positions; documents are numbered upwards."""
    return torch.searchsorted(ids_BS, ids_BS)


def dense(mask):
    S = mask.shape[1]
    return torch.ones(S, S, dtype=torch.bool).tril() & (torch.arange(S) >= mask[:, None, :, None])


@pytest.mark.parametrize(
    ("heads", "groups", "length", "width"), [(4, 2, 70, 32), (3, 3, 130, 64), (2, 1, 65, 128), (2, 2, 5, 34)]
)
@pytest.mark.parametrize("masks", [0, 1, 2])
def test_attention_and_gradients_are_those_of_torch(heads, groups, length, width, masks):
    q, k, v = random(2, heads, length, width), random(2, groups, length, width), random(2, groups, length, width)
    mask = document_mask(torch.randint(0, 3, (masks, length)).sort(-1).values) if masks else None
    out = kernels.attention(q, k, v, mask)
    grad = torch.randn_like(out)
    out.backward(grad)
    exact_q, exact_k, exact_v = exact(q, k, v)
    expected = F.scaled_dot_product_attention(
        exact_q, exact_k, exact_v, attn_mask=dense(mask) if masks else None, is_causal=not masks, enable_gqa=True
    )
    expected.backward(grad.float())
    assert_close(out, expected)
    for tensor, reference in ((q, exact_q), (k, exact_k), (v, exact_v)):
        assert_close(tensor.grad, reference.grad, tolerance=2e-2)  # differences of the softmax cancel


def test_other_documents_change_no_bit():
    q, k, v = random(1, 2, 40, 32), random(1, 2, 40, 32), random(1, 2, 40, 32)
    mask = document_mask(torch.tensor([[0] * 17 + [1] * 23]))
    before = kernels.attention(q, k, v, mask)
    with torch.no_grad():
        k[:, :, :17] = 99.0
        v[:, :, :17] = -99.0
    after = kernels.attention(q, k, v, mask)
    assert torch.equal(before[:, :, 17:], after[:, :, 17:])
    assert not torch.equal(before[:, :, :17], after[:, :, :17])
    after[:, :, 17:].float().sum().backward()
    assert k.grad[:, :, :17].eq(0).all()
    assert v.grad[:, :, :17].eq(0).all()


def test_query_that_may_look_at_nothing_gets_zeros():
    q, k, v = random(1, 1, 6, 32), random(1, 1, 6, 32), random(1, 1, 6, 32)
    mask = torch.tensor([[0, 0, 3, 0, 0, 0]])
    out = kernels.attention(q, k, v, mask)
    out.float().sum().backward()
    assert out[0, 0, 2].eq(0).all()
    assert q.grad.isfinite().all() and q.grad[0, 0, 2].eq(0).all()


@pytest.mark.parametrize("window", [None, 20])
def test_keys_far_from_a_block_are_passed_over(window):
    """Documents and a window leave blocks of queries far fewer keys than the sequence has; some see nothing."""
    S = 300
    q, k, v = random(2, 2, S, 32), random(2, 1, S, 32), random(2, 1, S, 32)
    mask = document_mask(torch.tensor([[0] * 130 + [1] * 6 + [2] * 164, [0] * 64 + [1] * 128 + [2] * 108]))
    if window:
        mask = torch.maximum(mask, torch.arange(S) - (window - 1))
    mask[1, 64:192] = S
    out = kernels.attention(q, k, v, mask)
    grad = torch.randn_like(out)
    out.backward(grad)
    references = exact(q, k, v)
    expected = F.scaled_dot_product_attention(*references, attn_mask=dense(mask), enable_gqa=True).nan_to_num()
    expected.backward(grad.float() * dense(mask).any(-1)[..., None])
    assert out[1, :, 64:192].eq(0).all()
    assert_close(out, expected)
    for tensor, reference in zip((q, k, v), references, strict=True):
        assert_close(tensor.grad, reference.grad.nan_to_num(), tolerance=2e-2)
