import pytest
import torch

from ava_core import kernels
from ava_core.training.optimizers import muon
from tests.kernels.conftest import assert_close, random


@pytest.mark.parametrize(("count", "m", "k"), [(3, 7, 10), (1, 64, 34), (2, 130, 66), (1, 257, 600)])
def test_symmetric_products_are_those_of_torch_and_symmetric(count, m, k):
    x = random(count, m, k).detach()
    plus = random(count, m, m).detach()
    plus = plus + plus.mT
    exact = x.float()
    gram = kernels.symmetric_product(x)
    assert_close(gram, exact @ exact.mT)
    assert torch.equal(gram, gram.mT)
    assert_close(kernels.symmetric_product(x, plus, alpha=-0.5, beta=2.0), 2 * plus.float() - 0.5 * exact @ exact.mT)


@pytest.mark.parametrize(("count", "m", "k", "n"), [(3, 5, 6, 9), (2, 70, 64, 130), (1, 33, 514, 66)])
def test_products_are_added_to_what_is_given(count, m, k, n):
    a, b, plus = random(count, m, k).detach(), random(count, k, n).detach(), random(count, m, n).detach()
    assert_close(kernels.product_plus(a, b, plus, beta=3.0), 3 * plus.float() + a.float() @ b.float())


@pytest.mark.parametrize("shape", [(4, 24, 60), (60, 24), (2, 3, 130, 34)])
def test_muon_is_as_near_to_float32_as_by_torch(shape, monkeypatch):
    matrix = random(*shape).detach()
    exact = muon.orthogonalize(matrix.float(), dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(muon, "_step", None)
        ours = muon.orthogonalize(matrix)
    assert ours.shape == matrix.shape
    monkeypatch.setenv("AVA_KERNELS", "off")
    theirs = muon.orthogonalize(matrix)
    assert (ours.float() - exact).norm() <= 1.5 * (theirs.float() - exact).norm() + 2e-3 * exact.norm()
