"""Both graphs past the original context and past the window: PyTorch's logits and words."""

import numpy as np
import pytest
import torch

from ava_core.errors import ConfigError
from ava_core.onnx.session import DecoderSession

ATOL = 5e-5
ORIGINAL, CONTEXT, WINDOW = 8, 64, 6
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
SCALED = {"original_max_position_embeddings": ORIGINAL, "factor": 4.0}
KINDS = {
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", **SCALED}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", **SCALED}},
    "window": {"sliding_window": WINDOW},
    "some windows": {"sliding_window": WINDOW, "layer_types": MIXED},
    "window of two": {"sliding_window": 2},
    "yarn in windows": {
        **{"rope_parameters": {"rope_type": "yarn", **SCALED}, "sliding_window": WINDOW},
        **{"layer_types": MIXED, "qk_norm": "none", "num_key_value_heads": 4},
    },
}
FUSED = [name for name in KINDS if name != "dynamic"]
BOTH = [(name, False) for name in FUSED] + [(name, True) for name in KINDS]
GRAPHS = [f"{'portable' if portable else 'fused'}-{name}" for name, portable in BOTH]


def tokens(batch: int = 2, length: int = 30) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(make_model):
    def build(name):
        return make_model(max_position_embeddings=CONTEXT, head_dim=16, **KINDS[name])

    return build


@torch.no_grad()
@pytest.mark.parametrize(("name", "portable"), BOTH, ids=GRAPHS)
def test_graph_computes_what_the_model_does(make, export, make_model, name, portable):
    model, rows = make(name), tokens()
    candidate = export(model, portable=portable)
    expected = model(rows, use_cache=False).logits
    np.testing.assert_allclose(candidate(rows, use_cache=False).logits, expected, atol=ATOL)
    plain = make_model(max_position_embeddings=CONTEXT, head_dim=16, qk_norm=model.config.qk_norm)
    if plain.state_dict().keys() == model.state_dict().keys() and name != "yarn in windows":
        plain.load_state_dict(model.state_dict())
        assert (plain(rows, use_cache=False).logits - expected).abs().max() > 100 * ATOL
    # Packed documents, each of which is longer than the window.
    documents = torch.tensor([[0] * 9 + [1] * 21, [0] * 30])
    if portable or name != "dynamic":
        arguments = {"document_ids": documents, "use_cache": False}
        np.testing.assert_allclose(candidate(rows, **arguments).logits, model(rows, **arguments).logits, atol=ATOL)


@torch.no_grad()
@pytest.mark.parametrize("name", FUSED)
def test_prompt_in_chunks_and_single_tokens_are_the_whole(make, export, name):
    model, rows = make(name), tokens()
    export(model)
    decoder = DecoderSession.load(export.folder, threads=1)
    expected = model(rows, use_cache=False).logits.numpy()
    cache = decoder.cache(2, 32)
    for start, end in ((0, 4), (4, 15), (15, 16), (16, 17), (17, 25), (25, 26), (26, 30)):
        found = decoder.run(rows[:, start:end].numpy(), cache, all_logits=True)
        np.testing.assert_allclose(found, expected[:, start:end], atol=ATOL)


@torch.no_grad()
@pytest.mark.parametrize(("name", "portable"), BOTH, ids=GRAPHS)
def test_words_are_those_of_the_model(make, export, name, portable):
    model, rows = make(name), tokens(2, 9)
    candidate = export(model, portable=portable)
    mask = torch.ones_like(rows)
    mask[0, :3] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(candidate.generate(rows, **asked), model.generate(rows, **asked))


def test_fused_graph_refuses_dynamic_with_the_way_out(make, export):
    with pytest.raises(ConfigError, match=r"type = dynamic: .*: set quantize.portable = true, or go on .* with yarn"):
        export(make("dynamic"))
