"""Small models of Transformers with weights that make every part matter."""

import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CLASSES = {
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"intermediate_size": 24}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"intermediate_size": 24, "head_dim": 12}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"moe_intermediate_size": 24, "head_dim": 16}),
}


def make(kind, **overrides):
    config_class, model_class, fields = CLASSES[kind]
    return randomise(model_class(config_class(**{**SHAPE, **fields, **overrides})))


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def make_theirs():
    return make


@pytest.fixture
def tokens():
    return torch.randint(3, 61, (3, 14), generator=torch.Generator().manual_seed(1))
