"""Routers over seven experts, four of them FFN, and logits for them."""

import pytest
import torch

from ava_core.models import EnhancedMoEConfig
from ava_core.models.routing import build_router

SEVEN = {"num_ffn_experts": 4, "num_zero_experts": 1, "num_copy_experts": 1, "num_constant_experts": 1}


def _router(**overrides):
    return build_router(EnhancedMoEConfig(**{**SEVEN, **overrides}))


def _logits(tokens=64, experts=7, scale=1.0, seed=0):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture(scope="session")
def make_router():
    return _router


@pytest.fixture(scope="session")
def make_logits():
    return _logits
