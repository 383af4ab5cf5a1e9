"""Nothing is lost or shared: what is converted and converted back is the same, bit for bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.conversion import PEERS, from_transformers, to_transformers

KINDS = tuple(PEERS)
PLAIN = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "expert_intermediate_size": 16,
    "num_ffn_experts": 3,
    "num_zero_experts": 0,
    "num_copy_experts": 0,
    "num_constant_experts": 0,
    "gating_residuals": False,
    "router_z_loss_weight": 0.0,
    "rope_theta": 777.0,
    "rms_norm_eps": 3e-6,
    "bos_token_id": 0,
    "eos_token_id": [1, 5],
    "pad_token_id": 2,
}


def make_ours(kind, **overrides):
    torch.manual_seed(0)
    special = {"qk_norm": PEERS[kind].qk_norm, "normalize_router_weights": PEERS[kind].normalises_always}
    model = EnhancedMoEForCausalLM(EnhancedMoEConfig(**{**PLAIN, **special, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def assert_same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y), name


def described(config):
    """What a configuration says, less what only says where it came from."""
    return {k: v for k, v in config.to_dict().items() if k not in ("transformers_version", "architectures", "dtype")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_comes_back_bit_equal(kind, tied, tokens):
    ours = make_ours(kind, tie_word_embeddings=tied).eval()
    theirs = to_transformers(ours, kind)
    back = from_transformers(theirs)
    assert_same_weights(back, ours)
    for model in (theirs, back):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert not model.training
    # tau and the coefficient's quotient by E are the only numbers without a counterpart over there
    expected = described(ours.config) | {"tau": 1.0, "balance_loss_weight": pytest.approx(0.01)}
    assert described(back.config) == expected
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=0, atol=1e-5)
        assert torch.equal(back(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_theirs_comes_back_bit_equal(kind, tied, make_theirs, tokens):
    theirs = make_theirs(kind, tie_word_embeddings=tied, router_aux_loss_coef=0.125)
    back = to_transformers(from_transformers(theirs), kind)
    assert type(back) is type(theirs)
    assert_same_weights(back, theirs)
    ours_alone = {"intermediate_size"} if kind == "qwen3_moe" else set()  # of dense layers, which there are none of
    same = {k: v for k, v in described(theirs.config).items() if k not in ours_alone}
    assert {k: v for k, v in described(back.config).items() if k not in ours_alone | {"head_dim"}} == {
        k: v for k, v in same.items() if k != "head_dim"
    }
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_stay_even_when_they_are_mixed(dtype, make_theirs):
    theirs = make_theirs("qwen3_moe").to(dtype)
    theirs.model.layers[1].mlp.gate.float()
    back = to_transformers(from_transformers(theirs), "qwen3_moe")
    assert_same_weights(back, theirs)
    assert from_transformers(theirs).model.layers[1].moe.gate.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_copies_share_no_memory_and_can_be_trained(kind, make_theirs, tokens):
    theirs = make_theirs(kind).train()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = from_transformers(theirs)
    back = to_transformers(ours, kind)
    for model in (ours, back):
        assert model.training
        model(tokens, labels=tokens).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_generation_settings_travel_along(kind, make_theirs):
    theirs = make_theirs(kind)
    theirs.generation_config.top_k = 17
    ours = from_transformers(theirs)
    assert ours.generation_config.top_k == to_transformers(ours, kind).generation_config.top_k == 17
    ours.generation_config.top_k = 3
    assert theirs.generation_config.top_k == 17


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_converted_model_is_saved_and_loaded_by_transformers_alone(kind, tied, tokens, tmp_path):
    ours = make_ours(kind, tie_word_embeddings=tied).eval()
    theirs = to_transformers(ours, kind)
    theirs.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is PEERS[kind].model_class
    assert_same_weights(loaded, theirs)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, theirs(tokens).logits)
        assert torch.equal(from_transformers(loaded)(tokens).logits, ours(tokens).logits)
