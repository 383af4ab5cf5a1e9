"""A model that reads and writes bytes, with weights that make every token of the context matter."""

import copy

import pytest
import torch
from tokenizers import AddedToken

from tests.onnx.conftest import export, make_model  # noqa: F401  fixtures

END, PADDING = 256, 257
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def padded_tokenizer(byte_tokenizer):
    """`byte_tokenizer` with a token for padding."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"pad_token": AddedToken("<|pad|>", special=True)})
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END, PADDING)
    return tokenizer


@pytest.fixture
def chat_tokenizer(padded_tokenizer):
    """A tokenizer with a template that ends turns by a token of its own, 258."""
    tokenizer = copy.deepcopy(padded_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end_of_turn|>", special=True)]})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def byte_model(make_model):  # noqa: F811
    """Of PyTorch; some of its texts end."""
    model = make_model(vocab_size=260, num_layers=2)
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.7
    return model


@pytest.fixture(params=["torch", "onnx"])
def either_model(request, byte_model, export):  # noqa: F811
    """`byte_model`, and its export to ONNX with the same float32 weights."""
    return byte_model if request.param == "torch" else export(byte_model)
