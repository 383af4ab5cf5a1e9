import copy
import functools

import pytest
import torch

from ava_core.errors import AvaError
from ava_core.quantization.blockwise import quantize_blocks
from tests.onnx.conftest import MATRICES

VARIANTS = {
    "default": {},
    "confidence": {"router": "confidence"},
    "confidence-all": {"router": "confidence", "confidence_threshold": 1.0, "max_experts_per_token": None},
    "confidence-normalised": {"router": "confidence", "normalize_router_weights": True, "tie_word_embeddings": False},
    "top-k-normalised": {"normalize_router_weights": True, "num_experts_per_token": 3},
    "sinkhorn": {"router": "sinkhorn"},
    "expert-choice": {"router": "expert_choice", "num_experts_per_token": 3},
    "expert-bias": {"router": "expert_bias"},
    "one-group": {"router": "hierarchical"},
    "all-groups": {"router": "hierarchical", "num_expert_groups": 2, "num_groups_per_token": 2},
    "some-groups": {
        "router": "hierarchical",
        "num_expert_groups": 4,
        "num_groups_per_token": 2,
        "num_experts_per_token": 3,
        "normalize_router_weights": True,
    },
    "norm-of-projections": {"qk_norm": "projection"},
    "shared-and-constant": {"num_shared_experts": 2, "num_zero_experts": 0, "num_copy_experts": 0},
    "copy-only": {"num_zero_experts": 0, "num_copy_experts": 2, "num_constant_experts": 0},
    "zero-only": {"num_copy_experts": 0, "num_constant_experts": 0},
    "vanilla": {
        "num_zero_experts": 0,
        "num_copy_experts": 0,
        "num_constant_experts": 0,
        "gating_residuals": False,
        "qk_norm": "none",
    },
    "one-expert": {
        "num_ffn_experts": 1,
        "num_experts_per_token": 1,
        "num_zero_experts": 0,
        "num_copy_experts": 0,
        "num_constant_experts": 0,
    },
    "multi-head": {"num_key_value_heads": 4, "head_dim": 6, "rope_theta": 500.0},
    "multi-query": {"num_key_value_heads": 1, "num_layers": 1},
    "odd-sizes": {"vocab_size": 97, "hidden_size": 40, "expert_intermediate_size": 25},
}


def tokens(batch: int = 2, length: int = 19) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def export(export):
    """With the portable graph."""
    return functools.partial(export, portable=True)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request, make_model):
    return make_model(**request.param)


@torch.no_grad()
def test_the_float_graph_gives_the_models_logits_and_choices(variant, export):
    ids = tokens()
    expected = variant(ids, output_router_logits=True)
    found = export(variant)(ids, output_router_logits=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=5e-5, rtol=1e-5)
    for layer in range(variant.config.num_layers):
        assert torch.equal(found.router_choices[layer], expected.router_choices[layer])
        torch.testing.assert_close(found.router_logits[layer], expected.router_logits[layer], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_a_rounded_graph_gives_the_logits_of_the_model_with_rounded_weights(variant, export):
    rounded = copy.deepcopy(variant)
    for name, parameter in rounded.named_parameters():
        if MATRICES.search(name):
            parameter.copy_(torch.from_numpy(quantize_blocks(parameter.numpy(), 4, 16).dequantize()))
    ids = tokens()
    expected = rounded(ids).logits
    found = export(variant, 4, 16)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert (expected - variant(ids).logits).abs().max() > 0.01


@torch.no_grad()
def test_left_padding_changes_no_logits_of_the_text(variant, export):
    model, ids = export(variant), tokens(1, 9)
    padded = torch.cat((tokens(1, 4), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 4), torch.ones(1, 9)), dim=1).long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(found, model(ids).logits, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_going_on_from_the_cache_gives_the_logits_of_the_whole_text(variant, export):
    model, ids = export(variant), tokens()
    whole = model(ids).logits
    first = model(ids[:, :7], use_cache=True)
    second = model(ids[:, 7:12], past_key_values=first.past_key_values, use_cache=True)
    third = model(ids[:, 12:13], past_key_values=second.past_key_values, use_cache=True)
    found = torch.cat((first.logits, second.logits, third.logits), dim=1)
    torch.testing.assert_close(found, whole[:, :13], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(make_model, export):
    original, ids = make_model(), tokens(2, 18)
    model = export(original)
    documents = torch.arange(18).expand(2, 18) // 6
    found = model(ids, document_ids=documents).logits
    torch.testing.assert_close(found, original(ids, document_ids=documents).logits, atol=2e-5, rtol=1e-5)
    assert (found[:, 6:] - model(ids).logits[:, 6:]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("keep", [0, 1, 5])
def test_only_the_asked_for_logits_are_computed(make_model, export, keep):
    model, ids = export(make_model()), tokens()
    assert torch.equal(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, -keep:])


def test_a_parameter_that_the_export_does_not_know_is_refused(make_model, export):
    model = make_model()
    model.model.layers[1].moe.register_parameter("temperature", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(AvaError, match=r"model\.layers\.1\.moe\.temperature: the ONNX export doesn't know"):
        export(model)


def test_a_router_without_an_export_is_refused(make_model, export):
    model = make_model()
    model.config.router = "hash"
    with pytest.raises(AvaError, match="router = hash: has no ONNX export"):
        export(model)
