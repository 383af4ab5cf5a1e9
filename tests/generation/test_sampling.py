import pytest
import torch
from transformers import GenerationConfig as DecodingConfig

from ava_core.config.generation import GenerationConfig
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.generation.sampling import Sampler

SETTINGS = GenerationConfig(max_new_tokens=24, temperature=1.3, top_p=0.95, top_k=40, min_p=0.02)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


def sampled(model, ids, strategy, settings, seed):
    """Token by token with our own loop."""
    sampler, ids = Sampler(strategy, settings, seed, ids, ends=[0]), list(ids)
    for _ in range(settings.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(sampler.next(logits))
    return ids


FILTERS = {
    "greedy": {"do_sample": False},
    "nucleus": {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
    "top-k": {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 1.0},
    "min-p": {"do_sample": True, "temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.02},
}


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("strategy", FILTERS)
def test_tokens_are_those_of_transformers_with_the_same_seed(loaded, strategy, penalty):
    model, tokenizer = loaded
    ids = tokenizer("To be, or")["input_ids"]
    assert tokenizer.eos_token_id == 0
    settings = SETTINGS.model_copy(update={"repetition_penalty": penalty})
    config = DecodingConfig(
        max_new_tokens=24, repetition_penalty=penalty, eos_token_id=0, pad_token_id=1, **FILTERS[strategy]
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model.generate(torch.tensor([ids]), generation_config=config)[0].tolist()
        assert len(expected) > len(ids) + 1
        assert sampled(model, ids, strategy, settings, seed)[: len(expected)] == expected


@pytest.mark.parametrize("strategy", ["nucleus", "top-k", "min-p"])
def test_text_of_a_prompt_hangs_on_its_seed_and_not_on_its_neighbours(loaded, strategy):
    prompts = ["To be, or", "O", "Enter the KING and all his lords"]
    together = generate(*loaded, prompts, strategy=strategy, settings=SETTINGS, seed=3)
    alone = [generate(*loaded, [prompt], strategy=strategy, settings=SETTINGS, seed=3)[0] for prompt in prompts]
    assert together == alone
    assert generate(*loaded, prompts, strategy=strategy, settings=SETTINGS, seed=4) != together


@pytest.mark.parametrize("strategy", ["greedy", "nucleus"])
def test_stop_string_ends_the_text_and_is_left_out(loaded, strategy):
    [whole] = generate(*loaded, ["To be, or"], strategy=strategy, settings=SETTINGS, seed=3)
    stop = whole[15:18]
    settings = SETTINGS.model_copy(update={"stop": [stop]})
    [text] = generate(*loaded, ["To be, or"], strategy=strategy, settings=settings, seed=3)
    assert text == whole[: whole.index(stop, len("To be, or"))]


def test_pieces_shown_make_the_text(loaded):
    shown = []
    [text] = generate(*loaded, ["O"], strategy="nucleus", settings=SETTINGS, seed=5, show=shown.append)
    assert "O" + "".join(shown) == text
    assert len(shown) > 5
