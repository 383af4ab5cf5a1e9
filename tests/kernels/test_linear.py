import pytest
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
@given(rows=st.integers(0, 60), k=st.integers(1, 40).map(lambda n: 2 * n), n=st.integers(1, 80).map(lambda n: 2 * n))
def test_products_of_any_size(rows, k, n):
    torch.manual_seed(0)
    x, weight, grad = random(rows, k).detach(), random(n, k).detach(), random(rows, n).detach()
    out, logits, grad_x = torch.empty(rows, n).bfloat16(), torch.empty(rows, n), torch.empty_like(x)
    grad_weight, added = torch.full_like(weight, torch.nan), torch.ones(n, k)
    call("ava_linear", x, weight, out)
    call("ava_logits", x, weight, logits)
    call("ava_linear_input", grad, weight, grad_x)
    call("ava_linear_weight", grad, x, grad_weight)
    call("ava_add_head_gradient", grad, x, added)
    assert_close(out, x.float() @ weight.float().T)
    assert_close(logits, x.float() @ weight.float().T, tolerance=1e-6)
    assert_close(grad_x, grad.float() @ weight.float())
    assert_close(grad_weight, grad.float().T @ x.float())
    assert_close(added - 1, grad.float().T @ x.float(), tolerance=1e-5)


@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(1100, 34, 70), (1100, 600, 70), (600, 66, 1300), (1, 2, 2), (1537, 514, 516)],
    ids=lambda size: str(size),
)
def test_sums_in_several_chunks_and_strips_are_those_of_torch(rows, k, n):
    """Sizes past what the caches hold, with ends within a tile in each direction."""
    x, weight, grad = random(rows, k).detach(), random(n, k).detach(), random(rows, n).detach()
    out, grad_x = torch.full((rows, n), torch.nan).bfloat16(), torch.full_like(x, torch.nan)
    grad_weight, added = torch.full_like(weight, torch.nan), torch.ones(n, k)
    call("ava_linear", x, weight, out)
    call("ava_linear_input", grad, weight, grad_x)
    call("ava_linear_weight", grad, x, grad_weight)
    call("ava_add_head_gradient", grad, x, added)
    assert_close(out, x.float() @ weight.float().T)
    assert_close(grad_x, grad.float() @ weight.float())
    assert_close(grad_weight, grad.float().T @ x.float())
    assert_close(added - 1, grad.float().T @ x.float(), tolerance=1e-5)


@pytest.mark.parametrize(("rows", "k", "n"), [(100, 64, 200), (1100, 64, 64)])
def test_result_does_not_depend_on_the_number_of_threads(rows, k, n):
    x, weight = random(rows, k), random(n, k)
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
