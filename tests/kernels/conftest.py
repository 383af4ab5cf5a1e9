"""The native kernels are held against the same formula in float32, on inputs that bfloat16 holds exactly."""

import pytest
import torch
from torch import Tensor

from ava_core.kernels.library import loaded


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch):
    """Kernels for all that they can do, wherever they run, whatever this machine would choose for speed.

    Skips where they don't (test_library.py says where they must); the same inputs on every run.
    """
    if loaded() is None:
        pytest.skip("the native kernels aren't built, or this CPU lacks AVX-512 BF16")
    monkeypatch.setenv("AVA_KERNELS", "native")
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
