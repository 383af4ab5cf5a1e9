"""Frequencies of scaled rotary positions are those of Transformers; what means nothing is refused."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ava_core.models import EnhancedMoEConfig
from ava_core.models.rope import RotaryEmbedding, dynamic_frequencies, frequencies

ORIGINAL = 64
SHAPE = {"hidden_size": 96, "num_attention_heads": 2, "max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL}


def ours(rope, **fields):
    return EnhancedMoEConfig(**{**SHAPE, "num_layers": 1, "rope_parameters": rope, **fields})


def theirs(rope, **fields):
    return LlamaConfig(**{**SHAPE, "rope_parameters": dict(rope), **fields})


@pytest.mark.parametrize("theta", [100.0, 1e4, 1e6])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.5},
        YARN,
        {**YARN, "factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
        {**YARN, "attention_factor": 1.25, "truncate": False},
    ],
    ids=["linear", "yarn", "other range", "factor given"],
)
def test_frequencies_are_those_of_transformers(rope, theta):
    rope = {**rope, "rope_theta": theta}
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs(rope))
    found, sharpened = frequencies(ours(rope))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert sharpened == pytest.approx(factor, rel=1e-12)
    cosines, sines = RotaryEmbedding(ours(rope))(torch.arange(400)[None])
    torch.testing.assert_close(cosines.square() + sines.square(), torch.full_like(sines, sharpened**2))


@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, 500])
def test_dynamic_frequencies_are_those_of_transformers(length):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](theirs(rope, max_position_embeddings=ORIGINAL), seq_len=length)
    config = ours({**rope, "original_max_position_embeddings": ORIGINAL})
    found = dynamic_frequencies(config, torch.tensor([length]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    if length <= ORIGINAL:
        torch.testing.assert_close(found, frequencies(config)[0], rtol=1e-6, atol=0)


def test_dynamic_frequencies_of_a_row_are_its_own():
    config = ours({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": ORIGINAL})
    rotary = RotaryEmbedding(config)
    long, short = torch.arange(200), torch.arange(200) - 150  # 150 tokens of padding
    together = rotary(torch.stack([long, short.clamp_min(0)]))
    for row, positions in enumerate((long, short.clamp_min(0))):
        for found, expected in zip(together, rotary(positions[None]), strict=True):
            assert torch.equal(found[row], expected[0])


def test_factor_follows_from_the_contexts():
    scaling = {"type": "yarn", "original_max_position_embeddings": 128}
    config = EnhancedMoEConfig(**SHAPE, rope_scaling=scaling)
    assert config.rope_parameters["factor"] == 4.0
    assert EnhancedMoEConfig.from_dict(config.to_dict()).rope_parameters == config.rope_parameters


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_saved_configuration_is_read_back_without_a_warning(kind, tmp_path, caplog):
    config = ours({"rope_type": kind, "factor": 8.0, "original_max_position_embeddings": ORIGINAL}, sliding_window=9)
    config.save_pretrained(tmp_path)
    again = EnhancedMoEConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters and again.sliding_window == 9
    assert again.layer_types == ["sliding_attention"] and not caplog.records


def test_configuration_without_scaling_and_window_says_nothing_of_them():
    off = {"rope_scaling": {"type": "none", "factor": None}, "sliding_window": None, "layer_types": None}
    plain, config = EnhancedMoEConfig(**SHAPE), EnhancedMoEConfig(**SHAPE, **off)
    assert config.to_json_string() == plain.to_json_string()
    assert "sliding" not in config.to_json_string() and "layer_types" not in config.to_json_string()
    assert config.to_dict()["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "llama3"}, r"rope_type = 'llama3': must be one of default, linear, dynamic, yarn"),
        ({"rope_type": "linear"}, "factor = None: must be given for linear"),
        ({"rope_type": "linear", "factor": 0.5}, "factor = 0.5: must be > 1"),
        ({"rope_type": "linear", "factor": 1.0}, "factor = 1.0: must be > 1"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor = nan: must be > 1"),
        ({"rope_type": "linear", "factor": "2"}, "factor = '2': must be > 1"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast = 3.0: linear has no such parameter"),
        ({"rope_type": "dynamic", "factor": 2.0}, "original_max_position_embeddings = None: must be given for dynamic"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 512}, "factor = 1.0: must be > 1"),
        ({**YARN, "beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast = 1.0: beta_fast = 1 must be > beta_slow = 2"),
        ({**YARN, "attention_factor": 0.0}, "attention_factor = 0.0: must be > 0"),
        ({**YARN, "mscale": 1.0}, "mscale = 1.0: yarn has no such parameter"),
        ({"rope_type": "default", "factor": 2.0}, "factor = 2.0: default has no such parameter"),
    ],
)
def test_scaling_that_means_nothing_is_refused_by_name(rope, message):
    with pytest.raises(ValueError, match=f"^rope_parameters.{message}"):
        ours(rope)
