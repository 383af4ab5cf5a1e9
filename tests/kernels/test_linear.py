import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ava_core import kernels
from ava_core.kernels.library import call
from ava_core.kernels.linear import LEAST_ROWS
from tests.kernels.conftest import assert_close, exact, random


def test_product_and_gradients_are_those_of_torch():
    x, weight = random(3, 40, 34), random(70, 34)
    out = kernels.linear(x, weight)
    grad = torch.randn_like(out)
    out.backward(grad)
    exact_x, exact_weight = exact(x, weight)
    expected = F.linear(exact_x, exact_weight)
    expected.backward(grad.float())
    assert_close(out, expected)
    assert_close(x.grad, exact_x.grad)
    assert_close(weight.grad, exact_weight.grad)


def test_few_rows_odd_widths_and_float32_are_left_to_torch():
    assert kernels.linear(random(LEAST_ROWS - 1, 8), random(8, 8)) is None
    assert kernels.linear(random(LEAST_ROWS, 7), random(8, 7)) is None
    assert kernels.linear(torch.ones(LEAST_ROWS, 8), torch.ones(8, 8)) is None


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    k=st.integers(1, 40).map(lambda n: 2 * n),
    n=st.integers(1, 80).map(lambda n: 2 * n),
)
def test_groups_of_any_size_empty_ones_too(counts, k, n):
    torch.manual_seed(0)
    starts = torch.tensor([0, *counts]).cumsum(0)
    rows, groups = int(starts[-1]), len(counts)
    x, weight = random(rows, k).detach(), random(groups, n, k).detach()
    grad = random(rows, n).detach()
    out, grad_x = torch.empty(rows, n).bfloat16(), torch.empty_like(x)
    grad_weight = torch.full_like(weight, torch.nan)
    call("ava_linear", x, weight, starts, groups, k, n, 0, out)
    call("ava_linear", grad, weight, starts, groups, n, k, 1, grad_x)
    call("ava_linear_weight", grad, x, starts, groups, n, k, grad_weight)
    for e in range(groups):
        own = slice(int(starts[e]), int(starts[e + 1]))
        assert_close(out[own], x[own].float() @ weight[e].float().T)
        assert_close(grad_x[own], grad[own].float() @ weight[e].float())
        assert_close(grad_weight[e], grad[own].float().T @ x[own].float())


def test_result_does_not_depend_on_the_number_of_threads():
    x, weight = random(100, 64), random(200, 64)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = kernels.linear(x, weight)
            results.append((out, *torch.autograd.grad(out.float().sum(), (x, weight))))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_narrow_linear_is_exact_to_float32():
    x, weight = random(50, 36), random(5, 36)
    out = kernels.narrow_linear(x, weight)
    grad = torch.randn_like(out)
    out.backward(grad)
    exact_x, exact_weight = exact(x, weight)
    expected = F.linear(exact_x, exact_weight)
    expected.backward(grad)
    assert_close(out, expected, tolerance=1e-6)
    assert_close(x.grad, exact_x.grad)
    assert_close(weight.grad, exact_weight.grad)
