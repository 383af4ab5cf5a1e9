"""What is written ends where the model's context ends."""

import pytest
import torch

from ava_core.models import context as module


@pytest.fixture
def said(monkeypatch):
    """The lines that are said once."""
    lines = []
    monkeypatch.setattr(module.log, "warning_once", lines.append, raising=False)
    return lines


@pytest.fixture
def small(make_model):
    return make_model(num_layers=2, max_position_embeddings=16, eos_token_id=None)


@pytest.mark.parametrize(
    ("prompt", "asked", "written"), [(4, 12, 12), (4, 13, 12), (10, 256, 6), (15, 5, 1), (16, 5, 1)]
)
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3}, {"use_cache": False}])
def test_generation_ends_with_the_context(small, said, options, prompt, asked, written):
    tokens = torch.arange(3, 3 + prompt)[None]
    found = small.generate(tokens, max_new_tokens=asked, pad_token_id=2, **options)
    assert found.shape[1] == prompt + written
    said_so = ["generation ends with the model's context (max_position_embeddings = 16)"]
    assert said == ([] if asked == written else said_so)


def test_generation_from_embeddings_ends_with_the_context(small, said):
    embeds = small.get_input_embeddings()(torch.arange(3, 13)[None])
    assert small.generate(inputs_embeds=embeds, max_new_tokens=40, pad_token_id=2).shape[1] == 6
    assert small.generate(inputs_embeds=embeds, max_new_tokens=3, pad_token_id=2).shape[1] == 3


@pytest.mark.parametrize("length", [17, 40])
def test_prompt_beyond_the_context_is_refused(small, length):
    message = rf"prompt of {length} tokens: the model's context \(max_position_embeddings\) is 16: shorten it"
    with pytest.raises(ValueError, match=message):
        small.generate(torch.full((1, length), 5), max_new_tokens=1)


def test_positions_beyond_the_context_are_said_and_computed(small, said):
    inside = torch.full((1, 16), 5)
    small(inside)
    small(torch.full((1, 40), 5), position_ids=torch.arange(40)[None] % 16)  # packed documents
    assert not said
    assert small(torch.full((1, 17), 5)).logits.shape[1] == 17
    cache = small(inside, use_cache=True).past_key_values
    small(inside[:, :1], past_key_values=cache)
    assert said == [said[0]] * 2 and said[0].startswith("positions beyond the model's context (max_position_em")
