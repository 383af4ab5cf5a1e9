"""Attention in a sliding window: what a layer sees, in training, with documents, padding and caches."""

import pytest
import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from ava_core.models import EnhancedMoEConfig
from ava_core.models.masks import dense_mask, layer_masks

WINDOW = 5
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
CLOSE = {"rtol": 0, "atol": 1e-5}


def reference_mask(documents, window):
    """By the definition: the same document, not after, and less than a window before."""
    B, S = documents.shape
    mask = torch.zeros(B, 1, S, S, dtype=torch.bool)
    for b in range(B):
        for q in range(S):
            for k in range(q + 1):
                mask[b, 0, q, k] = q - k < window and documents[b, q] == documents[b, k]
    return mask


@pytest.fixture
def tokens():
    return torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def sliding(make_model):
    return make_model(num_layers=3, sliding_window=WINDOW, layer_types=MIXED, max_position_embeddings=64)


def test_masks_are_those_of_the_definition(sliding, tokens):
    embeds = sliding.get_input_embeddings()(tokens)
    positions = torch.arange(24)[None]
    one = torch.zeros_like(tokens)
    packed = torch.tensor([[0] * 9 + [1] * 15, [0] * 3 + [1] * 3 + [2] * 18])
    for documents in (None, packed):
        masks = layer_masks(sliding.config, embeds, None, None, positions, documents)
        compared = one if documents is None else documents
        for mask, kind in zip(masks, MIXED, strict=True):
            window = WINDOW if kind == "sliding_attention" else 24
            expected = reference_mask(compared, window)
            if mask is None:  # plainly causal
                assert kind == "full_attention" and documents is None
            else:
                assert torch.equal(dense_mask(mask, 0, 0, 24).expand(2, 1, -1, -1), expected)
        assert masks[0] is masks[2]


def test_training_is_that_of_a_plain_model_with_the_windows_mask(make_model, tokens):
    sliding = make_model(num_layers=3, sliding_window=WINDOW).train()
    plain = make_model(num_layers=3).train()
    plain.load_state_dict(sliding.state_dict())
    losses = [
        sliding(tokens, labels=tokens).loss,
        plain(tokens, labels=tokens, attention_mask=reference_mask(torch.zeros_like(tokens), WINDOW)).loss,
        plain(tokens, labels=tokens).loss,
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    assert abs(losses[0] - losses[2]) > 1e-4
    losses[0].backward()
    losses[1].backward()
    for (name, ours), theirs in zip(sliding.named_parameters(), plain.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_token_before_the_windows_of_all_layers_changes_nothing(make_model, tokens):
    model = make_model(num_layers=2, sliding_window=WINDOW)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50 + 3
    with torch.no_grad():
        difference = (model(tokens).logits - model(changed).logits).abs().amax(dim=(0, 2))
    reach = 2 * (WINDOW - 1)  # a window less one, once per layer
    assert (difference[: reach + 1] > 0).all() and not difference[reach + 1 :].any()


@torch.no_grad()
@pytest.mark.parametrize("whole_cache", [False, True], ids=["windows", "everything"])
@pytest.mark.parametrize("layers", [None, MIXED], ids=["all slide", "some slide"])
@pytest.mark.parametrize(
    "rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}, YARN], ids=["plain", "linear", "yarn"]
)
def test_cached_chunks_and_tokens_are_the_whole(make_model, tokens, rope, layers, whole_cache):
    fields = {"rope_parameters": {**rope, "rope_theta": 1e4}, "max_position_embeddings": 32}
    model = make_model(num_layers=3, sliding_window=WINDOW, layer_types=layers, **fields)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    expected = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache = DynamicCache() if whole_cache else DynamicCache(config=model.config)
    for start, end in ((0, 3), (3, 11), (11, 12), (12, 20), (20, 21), (21, 22), (22, 24)):
        found = model(
            tokens[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
        ).logits
        real = mask[:, start:end].bool()
        torch.testing.assert_close(found[real], expected[:, start:end][real], **CLOSE)
    if layers is None and not whole_cache:
        assert cache.layers[0].keys.shape[2] == WINDOW - 1  # and the memory is that of the window


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generated_text_is_the_same_without_a_cache(sliding, tokens, cache):
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = sliding.generate(tokens, use_cache=False, **asked)
    found = sliding.generate(tokens, cache_implementation=cache, disable_compile=True, **asked)
    assert torch.equal(found, expected)


def test_attention_in_bfloat16_sees_the_same(sliding, tokens):
    exact, low = sliding(tokens).logits, sliding.to(torch.bfloat16)(tokens).logits.float()
    assert F.cosine_similarity(exact, low, dim=-1).min() > 0.95


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sliding_window": 1}, "sliding_window = 1: must be > 1, or null: of one token"),
        ({"layer_types": MIXED}, "layer_types = .*: has no effect without sliding_window"),
        ({"sliding_window": 4, "layer_types": ["full_attention"]}, "layer_types = .*: must name sliding_attention"),
        ({"sliding_window": 4, "layer_types": ["chunked"]}, "layer_types = .*: must be full_attention or sliding"),
        ({"sliding_window": 4, "layer_types": []}, r"layer_types = \[\]: must have 1 to num_layers = 3 entries"),
        ({"sliding_window": 4, "layer_types": MIXED * 2}, "layer_types = .*: must have 1 to num_layers = 3 entries"),
    ],
)
def test_windows_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        EnhancedMoEConfig(hidden_size=32, num_layers=3, **fields)


def test_pattern_repeats_over_the_layers():
    pattern = ["sliding_attention", "sliding_attention", "full_attention"]
    config = EnhancedMoEConfig(hidden_size=32, num_layers=7, sliding_window=4, layer_types=pattern)
    assert config.layer_types == [*pattern, *pattern, "sliding_attention"]
