"""Small models for the tests of this folder."""

import pytest
import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "expert_intermediate_size": 16,
    "num_ffn_experts": 4,
    "num_zero_experts": 1,
    "num_copy_experts": 1,
    "num_constant_experts": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def build(seed=0, **overrides) -> EnhancedMoEForCausalLM:
    """A model in evaluation mode whose weights are large enough for routing to differ between tokens."""
    torch.manual_seed(seed)
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**{**TINY, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def make_model():
    return build


@pytest.fixture
def model():
    return build()


@pytest.fixture
def tokens():
    return torch.randint(3, TINY["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(1))
