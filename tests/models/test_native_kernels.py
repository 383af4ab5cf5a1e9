"""Whole models in bfloat16: the native kernels against plain torch, which stands in where they aren't built."""

import math
import statistics

import pytest
import torch

from ava_core import kernels
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from tests.kernels.conftest import PATHS

SEEDS = range(4)
VARIANTS = [
    {},
    {"router": "confidence", "num_key_value_heads": 4},
    {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "gating_residuals": False},
    {"num_constant_experts": 0, "num_shared_experts": 1, "qk_norm": "none"},
    {"qk_norm": "projection", "tie_word_embeddings": False, "capacity_factor": 0.8},
]


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch):
    if kernels.library.loaded() is None:
        pytest.skip("the native kernels aren't built, or this CPU lacks AVX-512 BF16")
    monkeypatch.setenv("AVA_KERNELS", "native")


def build(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "num_layers": 3, "num_key_value_heads": 2, "expert_intermediate_size": 48}
    config = EnhancedMoEConfig(vocab_size=128, **{**shape, **changes})
    model = EnhancedMoEForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model.train()


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs, return_logits=False, output_routes=True)
    output.loss.backward()
    return output, {name: p.grad.float().clone() for name, p in model.named_parameters() if p.grad is not None}


def batch(seed=0):
    tokens = torch.randint(0, 128, (3, 40), generator=torch.Generator().manual_seed(seed + 1))
    return {"input_ids": tokens, "labels": tokens, "document_ids": torch.tensor([[0] * 15 + [1] * 25]).expand(3, -1)}


@pytest.mark.parametrize("path", [*PATHS, "onednn"])
@pytest.mark.parametrize("changes", VARIANTS)
def test_loss_and_gradients_are_no_further_from_float32_than_those_of_plain_torch(changes, path, monkeypatch):
    """Errors are root mean squares over some seeds: of one, a small matrix's is a matter of chance."""
    ours, theirs = {}, {}
    for seed in SEEDS:
        model, inputs = build(seed, **changes), batch(seed)
        monkeypatch.setenv("AVA_KERNELS", path)
        native, native_gradients = loss_and_gradients(model, **inputs)
        # The same routes for all: a near tie may fall the other way in another order of rounding.
        inputs["routes"] = native.routes
        monkeypatch.setenv("AVA_KERNELS", "off")
        assert not kernels.products_pay() and not kernels.usable(model.lm_head.weight)
        plain, plain_gradients = loss_and_gradients(model, **inputs)
        exact, gradients = loss_and_gradients(model.float(), **inputs)
        torch.testing.assert_close(native.loss, plain.loss, rtol=2e-3, atol=0)
        torch.testing.assert_close(native.loss, exact.loss, rtol=2e-3, atol=0)
        assert native_gradients.keys() == gradients.keys()
        for errors, found in ((ours, native_gradients), (theirs, plain_gradients)):
            for name, gradient in gradients.items():
                relative = float((found[name] - gradient).norm() / gradient.norm())
                errors[name] = errors.get(name, 0.0) + relative**2 / len(SEEDS)
    ratios = {name: math.sqrt(error / theirs[name]) for name, error in ours.items()}
    assert {name: ratio for name, ratio in ratios.items() if ratio > 1.5} == {}
    assert statistics.median(ratios.values()) <= 1.1


def test_products_may_be_torchs_while_the_other_kernels_stay(monkeypatch):
    model, inputs = build(), batch()
    native, gradients = loss_and_gradients(model, **inputs)
    monkeypatch.setenv("AVA_KERNELS", "onednn")
    assert not kernels.products_pay() and kernels.usable(model.lm_head.weight)
    other, other_gradients = loss_and_gradients(model, **inputs, routes=native.routes)
    torch.testing.assert_close(other.loss, native.loss, rtol=2e-3, atol=0)
    head = "model.embed_tokens.weight"
    assert (other_gradients[head] - gradients[head]).norm() <= 0.02 * gradients[head].norm()


def test_recomputation_gives_the_same_gradients_to_the_bit():
    inputs = batch()
    _, kept = loss_and_gradients(build(), **inputs)
    model = build()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, recomputed = loss_and_gradients(model, **inputs)
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name
