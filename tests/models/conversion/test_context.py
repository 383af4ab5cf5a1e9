"""Scaled positions and sliding windows compute what Transformers computes, past the original context and the window."""

import pytest
import torch

from ava_core.models.conversion import from_transformers, to_transformers
from tests.models.conversion.conftest import make as make_mixture
from tests.models.conversion.test_dense import make as make_dense

EXACT = {"rtol": 0, "atol": 1e-5}
THETA = {"rope_theta": 5000.0}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "tuned yarn": {
        **{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 4.0},
        **{"beta_slow": 0.5, "attention_factor": 1.3, "truncate": False},
    },
    "DeepSeek's yarn": {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        **{"mscale": 0.7, "mscale_all_dim": 1.0},
    },
}
CONTEXT = {"linear": 64, "dynamic": 16}
MAKERS = {
    "llama": make_dense,
    "qwen3": make_dense,
    "olmoe": make_mixture,
    "mixtral": make_mixture,
    "qwen3_moe": make_mixture,
}


@pytest.fixture
def tokens():
    return torch.randint(3, 61, (2, 48), generator=torch.Generator().manual_seed(1))


def scaled(kind, rope, **overrides):
    fields = {"rope_parameters": {**ROPES[rope], **THETA}, "max_position_embeddings": CONTEXT.get(rope, 64)}
    return MAKERS[kind](kind, **{**fields, **overrides})


@torch.no_grad()
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", MAKERS)
def test_logits_past_the_original_context_are_those_of_transformers(kind, rope, tokens):
    theirs = scaled(kind, rope)
    ours = from_transformers(theirs)
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens).logits, expected, **EXACT)
    assert ours.config.max_position_embeddings == 64
    ours.config.rope_parameters = {"rope_type": "default", **THETA}
    assert (ours(tokens).logits - expected).abs().max() > 0.1  # else the scaling would show nowhere
    ours.config.rope_parameters = from_transformers(theirs).config.rope_parameters
    if kind not in ("llama", "qwen3"):
        again = to_transformers(ours, kind)
        torch.testing.assert_close(again(tokens).logits, expected, **EXACT)
        assert again.config.max_position_embeddings == theirs.config.max_position_embeddings


@torch.no_grad()
@pytest.mark.parametrize("rope", ["linear", "dynamic", "yarn"])
def test_greedy_text_past_the_original_context_is_that_of_transformers(rope, tokens):
    theirs = scaled("mixtral", rope, sliding_window=7)
    ours = from_transformers(theirs)
    asked = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 2}
    found = ours.generate(tokens[:1, :12], **asked)
    assert torch.equal(found, theirs.generate(tokens[:1, :12], **asked)) and found.shape[1] > 16


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mixtral", {"sliding_window": 5}),
        ("qwen3_moe", {"sliding_window": 5, "use_sliding_window": True}),
        ("qwen3", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_logits_past_the_window_are_those_of_transformers(kind, fields, tokens):
    theirs, full = MAKERS[kind](kind, **fields), MAKERS[kind](kind)
    ours, expected = from_transformers(theirs), theirs(tokens).logits
    torch.testing.assert_close(ours(tokens).logits, expected, **EXACT)
    assert (from_transformers(full)(tokens).logits - expected).abs().max() > 0.1
    mask = torch.ones_like(tokens)
    mask[0, :9] = 0
    real = mask.bool()
    padded = theirs(tokens, attention_mask=mask).logits[real]
    torch.testing.assert_close(ours(tokens, attention_mask=mask).logits[real], padded, **EXACT)
    if kind != "qwen3":
        again = to_transformers(ours, kind)
        torch.testing.assert_close(again(tokens).logits, expected, **EXACT)
    else:
        assert ours.config.layer_types == ["full_attention", "sliding_attention"]


def test_windows_without_effect_are_left_out():
    unused = make_mixture("qwen3_moe", sliding_window=16)
    wide = make_mixture("mixtral", sliding_window=64)
    for theirs in (unused, wide, make_dense("qwen3", sliding_window=16, use_sliding_window=True, max_window_layers=2)):
        ours = from_transformers(theirs)
        assert ours.config.sliding_window is None and not hasattr(ours.config, "layer_types")


def test_factor_of_one_is_no_scaling():
    theirs = make_dense("llama", rope_parameters={"rope_type": "linear", "factor": 1.0, **THETA})
    assert from_transformers(theirs).config.rope_parameters == {"rope_type": "default", **THETA}
