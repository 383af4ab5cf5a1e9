"""Saving, loading, resizing, types: what Transformers does with any model of its own."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, EnhancedMoEModel

ROUTERS = ("top_k", "expert_bias", "hierarchical")
GROUPS = {"hierarchical": {"num_expert_groups": 2, "num_groups_per_token": 2}}


def build(make_model, router, **overrides):
    """A model whose every weight and buffer differs from its initial value."""
    model = make_model(router=router, **GROUPS.get(router, {}), **overrides)
    with torch.no_grad():
        for number, buffer in enumerate(model.buffers()):
            buffer.copy_(torch.linspace(-0.1, 0.1, buffer.numel()).view_as(buffer) * (number + 1))
    return model


def assert_same_state(model, other):
    assert sorted(model.state_dict()) == sorted(other.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.slow
def test_saved_models_load_bit_equal_in_a_fresh_process(make_model, tokens, tmp_path):
    for name, model in {
        "tied": build(make_model, "top_k", tie_word_embeddings=True),
        "untied": build(make_model, "expert_bias", tie_word_embeddings=False),
    }.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        assert not list(folder.glob("*.bin"))
        expected = {"tokens": tokens, "logits": model(tokens).logits, "state": model.state_dict()}
        torch.save(expected, folder / "expected.pt")
    program = """
import json, sys, torch
import ava_core.models
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
found = {}
for name in ("tied", "untied"):
    folder = sys.argv[1] + "/" + name
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = torch.load(folder + "/expected.pt")
    state = model.state_dict()
    found[name] = {
        "keys": sorted(state) == sorted(expected["state"]),
        "weights": all(torch.equal(state[k], v) for k, v in expected["state"].items()),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "logits": torch.equal(model(expected["tokens"]).logits, expected["logits"]),
    }
print(json.dumps(found))
"""
    arguments = [str(tmp_path), str(torch.get_num_threads())]  # another number of threads sums in another order
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    alike = {"keys": True, "weights": True, "logits": True}
    assert found == {"tied": {**alike, "tied": True}, "untied": {**alike, "tied": False}}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_tensor_in_the_file(make_model, tmp_path, tied):
    make_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert ("lm_head.weight" in names) != tied


def test_auto_classes_know_the_model(make_model, tmp_path):
    config = AutoConfig.for_model("ava_moe", hidden_size=32, num_layers=1, vocab_size=10)
    assert isinstance(config, EnhancedMoEConfig)
    assert isinstance(AutoModel.from_config(config), EnhancedMoEModel)
    assert isinstance(AutoModelForCausalLM.from_config(config), EnhancedMoEForCausalLM)
    make_model().save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is EnhancedMoEForCausalLM


def test_decoder_loads_from_a_language_model_and_back(make_model, tokens, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "whole")
    decoder = AutoModel.from_pretrained(tmp_path / "whole")
    expected = model.model(tokens).last_hidden_state
    assert torch.equal(decoder(tokens).last_hidden_state, expected)
    decoder.save_pretrained(tmp_path / "decoder")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")  # the head is tied, so nothing is missing
    assert torch.equal(whole(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("router", ROUTERS)
def test_model_made_on_the_meta_device_holds_no_memory_and_fills_up(make_model, tokens, router):
    model = build(make_model, router)
    with torch.device("meta"):
        empty = EnhancedMoEForCausalLM(model.config)
    assert all(value.is_meta for value in empty.state_dict().values())
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("router", ROUTERS)
def test_loading_goes_over_the_meta_device_and_restores_buffers(make_model, tokens, tmp_path, router):
    model = build(make_model, router)
    model.save_pretrained(tmp_path)
    loaded, report = EnhancedMoEForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not any(value.is_meta for value in (*loaded.parameters(), *loaded.buffers()))
    assert_same_state(loaded, model)


def test_weights_that_a_file_lacks_are_initialised(make_model, tmp_path):
    """A model of another number of layers is loaded: Transformers initialises the rest with our rules."""
    make_model(router="expert_bias", num_layers=2).save_pretrained(tmp_path)
    loaded = EnhancedMoEForCausalLM.from_pretrained(tmp_path, num_layers=3)
    layer = loaded.model.layers[2]
    assert (layer.input_layernorm.weight == 1).all()
    assert (layer.moe.gate.residual_weight == 0).all()
    assert 0.01 < layer.moe.experts.down_proj.std() < 0.03
    assert all((buffer == 0).all() for buffer in layer.buffers())


def test_loaded_weights_lie_as_fresh_ones_do(make_model, tmp_path):
    """A tensor inside the mapped file begins anywhere, and products of it round otherwise."""
    make_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(weight.data_ptr() % 64 == 0 for weight in loaded.parameters())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_sharded_file_loads_the_same(make_model, tokens, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [80, 40])
def test_resized_vocabulary_keeps_the_common_tokens(make_model, tokens, tmp_path, tied, size):
    model = make_model(tie_word_embeddings=tied)
    before = model(tokens % 40).logits
    model.resize_token_embeddings(size)
    after = model(tokens % 40).logits
    assert model.config.vocab_size == size == after.shape[-1]
    common = min(size, 61)
    torch.testing.assert_close(after[..., :common], before[..., :common])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens % 40).logits, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_gives_nearly_the_same_logits(make_model, tokens, tmp_path, dtype):
    model = make_model(router="expert_bias")
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {weight.dtype for weight in half.parameters()} == {dtype}
    assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}  # a bias in steps of 0.001 needs them
    routes = model(tokens, output_routes=True).routes
    out = half(tokens, labels=tokens, routes=routes)  # the same routes: a near-tie would be no rounding error
    expected = model(tokens, labels=tokens)
    torch.testing.assert_close(out.logits.float(), expected.logits, rtol=0.05, atol=0.15)
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.02, atol=0)


@pytest.mark.parametrize("cast", ["float", "bfloat16", "half", "double"])
def test_casting_the_model_leaves_rotary_angles_exact(make_model, cast):
    model = make_model()
    positions = torch.arange(200)[None]
    expected = model.model.rotary_emb(positions)
    there_and_back = getattr(model, cast)().float()
    for model in (getattr(there_and_back, cast)(), there_and_back):
        for angle, exact in zip(model.model.rotary_emb(positions), expected, strict=True):
            assert angle.dtype == torch.float32 and torch.equal(angle, exact)


def test_experts_implementation_is_chosen_when_loading(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="dense")
    assert loaded.config.experts_implementation == "dense"
    with pytest.raises(ValueError, match="experts_implementation = 'fast': must be one of auto, "):
        AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="fast")
