"""The native kernels are held against the same formula in float32, on inputs that bfloat16 holds exactly."""

import pytest
import torch
from torch import Tensor

from ava_core.config.hardware import PRODUCTS
from ava_core.kernels.library import has_tiles, loaded

PATHS = [*PRODUCTS, *(["native"] if has_tiles() else [])]
"""With AMX native is another path than avx512."""


@pytest.fixture(autouse=True, params=PATHS)
def native_kernels(request, monkeypatch):
    """Kernels for all that they can do, wherever they run, with each of their ways to multiply.

    Skips where they don't run (test_library.py says where they must); the same inputs on every run.
    """
    if loaded() is None:
        pytest.skip("the native kernels aren't built, or this CPU lacks AVX-512 BF16")
    monkeypatch.setenv("AVA_KERNELS", request.param)
    torch.manual_seed(0)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """bfloat16 leaf that requires a gradient."""
    return (torch.randn(shape) * scale).bfloat16().requires_grad_()


def exact(*tensors: Tensor) -> list[Tensor]:
    """float32 leaves with the same values."""
    return [t.detach().float().requires_grad_() for t in tensors]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-2) -> None:
    """Relative error of the whole tensor: a few roundings to bfloat16, 2^-9 each."""
    assert actual.isfinite().all()
    difference = (actual.float() - expected.float()).norm()
    assert difference <= tolerance * expected.float().norm() + 1e-6
