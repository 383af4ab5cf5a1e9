import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ava_core import kernels
from ava_core.models.dispatch import sort_by_expert
from tests.kernels.conftest import assert_close, exact, random


def run(x, weights_TK, ids_TK, used_TK, gate_up, down):
    p = sort_by_expert(ids_TK, used_TK, down.shape[0], keep_unused=False)
    starts = F.pad(p.counts_N.cumsum(0), (1, 0))
    row_TK = p.row_TK.masked_fill(~p.occupied_TK, -1)
    return kernels.swiglu_experts(x, weights_TK, gate_up, down, row_TK, p.slot_R, p.token_R, starts)


def one_by_one(x, weights_TK, ids_TK, used_TK, gate_up, down):
    """The equations, a token and a slot at a time."""
    out = torch.zeros_like(x)
    for t, k in used_TK.nonzero().tolist():
        e = int(ids_TK[t, k])
        if e < down.shape[0]:
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            out[t] = out[t] + weights_TK[t, k] * (down[e] @ (F.silu(gate) * up))
    return out


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(1, 20),
    experts=st.integers(1, 6),
    others=st.integers(0, 3),
    k=st.integers(1, 3),
    width=st.integers(1, 45).map(lambda n: 2 * n),
    to_one=st.booleans(),
    unused=st.floats(0, 1),
)
def test_experts_and_gradients_are_their_equations(tokens, experts, others, k, width, to_one, unused):
    torch.manual_seed(0)
    k = min(k, experts + others)
    ids_TK = torch.rand(tokens, experts + others).topk(k).indices
    if to_one:
        ids_TK[:, 0], ids_TK[:, 1:] = 0, torch.arange(1, k)
    used_TK = torch.rand(tokens, k) >= unused
    x, gate_up, down = (
        random(tokens, 34),
        random(experts, 2 * width, 34, scale=0.2),
        random(experts, 34, width, scale=0.2),
    )
    weights = torch.rand(tokens, k).mul(used_TK).requires_grad_()
    out = run(x, weights, ids_TK, used_TK, gate_up, down)
    grad = torch.randn_like(out)
    out.backward(grad)
    references = exact(x, weights, gate_up, down)
    expected = one_by_one(references[0], references[1], ids_TK, used_TK, *references[2:])
    assert_close(out, expected)
    if expected.requires_grad:
        expected.backward(grad.float())
    for tensor, reference in zip((x, weights, gate_up, down), references, strict=True):
        wanted = torch.zeros_like(reference) if reference.grad is None else reference.grad
        if tensor is weights:  # dot products, whose terms may cancel: their error is relative to the terms
            assert (tensor.grad - wanted).abs().max() <= 1e-2 * (grad.float().norm() + wanted.norm())
        else:
            assert_close(tensor.grad, wanted)


@pytest.mark.parametrize("experts", [2, 16])
def test_result_does_not_depend_on_the_number_of_threads(experts):
    """With few experts threads share the products of each; with many each thread has its own experts."""
    ids_TK = torch.rand(600, experts).topk(2).indices
    weights = torch.rand(600, 2).requires_grad_()
    x, gate_up, down = random(600, 34), random(experts, 96, 34, scale=0.2), random(experts, 34, 48, scale=0.2)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = run(x, weights, ids_TK, torch.ones_like(ids_TK, dtype=torch.bool), gate_up, down)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), (x, weights, gate_up, down))))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
