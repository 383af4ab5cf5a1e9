"""Strategies over a really trained tiny model."""

import pytest
import torch

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.generation.strategies import STRATEGIES

PROMPTS = ["To be, or", "Enter the KING\n", "O"]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


def decode(loaded, prompts, strategy="greedy", seed=3, **settings):
    defaults = {"max_new_tokens": 12, "num_beams": 3}
    return generate(
        *loaded, prompts, strategy=strategy, settings=GenerationConfig(**{**defaults, **settings}), seed=seed
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_text_begins_with_its_prompt_and_goes_on(loaded, strategy):
    texts = decode(loaded, PROMPTS, strategy)
    assert all(text.startswith(prompt) and len(text) > len(prompt) for text, prompt in zip(texts, PROMPTS, strict=True))
    assert not any("<|" in text for text in texts)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_seed_gives_the_same_texts_whatever_the_random_state(loaded, strategy):
    first = decode(loaded, PROMPTS, strategy)
    torch.manual_seed(99)
    torch.rand(7)
    assert decode(loaded, PROMPTS, strategy) == first


def test_another_seed_changes_nucleus_only(loaded):
    assert decode(loaded, PROMPTS, "nucleus", seed=1) != decode(loaded, PROMPTS, "nucleus", seed=2)
    assert decode(loaded, PROMPTS, "greedy", seed=1) == decode(loaded, PROMPTS, "greedy", seed=2)
    assert decode(loaded, PROMPTS, "beam", seed=1) == decode(loaded, PROMPTS, "beam", seed=2)


def test_random_state_of_the_process_is_left_alone(loaded):
    before = torch.get_rng_state()
    decode(loaded, PROMPTS, "nucleus")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_left_padding_does_not_change_a_text(loaded, strategy):
    assert decode(loaded, PROMPTS, strategy) == [decode(loaded, [prompt], strategy)[0] for prompt in PROMPTS]


def test_greedy_is_the_argmax_of_the_whole_text_at_every_step(loaded):
    model, tokenizer = loaded
    tokens = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    for _ in range(12):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(dim=-1)], dim=1)
        if tokens[0, -1] == tokenizer.eos_token_id:
            break
    assert decode(loaded, PROMPTS[:1]) == [tokenizer.decode(tokens[0], skip_special_tokens=True)]


def test_beam_finds_a_text_at_least_as_probable_as_greedy(loaded):
    model, tokenizer = loaded

    def log_probability(text: str) -> float:
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return -float(model(tokens, labels=tokens).loss_parts["cross_entropy"])

    assert log_probability(decode(loaded, PROMPTS[:1], "beam", num_beams=8)[0]) >= log_probability(
        decode(loaded, PROMPTS[:1], "greedy")[0]
    )


def test_tiny_top_p_and_tiny_temperature_are_greedy(loaded):
    greedy = decode(loaded, PROMPTS)
    assert decode(loaded, PROMPTS, "nucleus", top_p=1e-6) == greedy
    assert decode(loaded, PROMPTS, "nucleus", temperature=1e-4) == greedy


def test_nucleus_is_not_cut_to_the_fifty_tokens_that_transformers_keeps_by_default(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        logits = model(tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]).logits[0, -1]
    fifty = {tokenizer.decode([token]) for token in logits.topk(50).indices.tolist()}
    drawn = decode(loaded, PROMPTS[:1] * 64, "nucleus", max_new_tokens=1, temperature=20.0, top_p=1.0)
    assert any(text.removeprefix(PROMPTS[0]) not in fifty for text in drawn)


def test_repetition_penalty_changes_the_text(loaded):
    assert decode(loaded, PROMPTS, repetition_penalty=3.0) != decode(loaded, PROMPTS)


def test_empty_prompt_begins_a_document(loaded):
    [text] = decode(loaded, [""])
    assert text


def test_no_prompts_give_no_texts(loaded):
    assert decode(loaded, []) == []


def test_prompt_longer_than_the_context_is_refused_in_one_line(loaded):
    with pytest.raises(AvaError, match=r"context of 128: shorten the prompt or ask for 0 new tokens at most") as error:
        decode(loaded, ["short", "Once more unto the breach, dear friends, " * 40])
    assert "\n" not in str(error.value)


def test_room_is_counted_to_the_token(loaded):
    prompt_tokens = len(loaded[1]("To be, or")["input_ids"])
    assert decode(loaded, ["To be, or"], max_new_tokens=128 - prompt_tokens)
    with pytest.raises(AvaError, match="more than the model's context"):
        decode(loaded, ["To be, or"], max_new_tokens=129 - prompt_tokens)


def test_unknown_strategy_is_refused(loaded):
    with pytest.raises(ConfigError, match="strategy best: must be one of greedy, beam, contrastive, nucleus"):
        decode(loaded, PROMPTS, "best")


@pytest.mark.parametrize("strategy", ["greedy", "nucleus"])
def test_special_token_in_a_prompt_is_read_as_text(loaded, monkeypatch, strategy):
    model, tokenizer = loaded
    real, read = model.generate, []
    monkeypatch.setattr(model, "generate", lambda **options: read.append(options["input_ids"]) or real(**options))
    [text] = decode(loaded, ["a <|endoftext|> b<|pad|>"], strategy)
    assert text.startswith("a <|endoftext|> b<|pad|>")
    assert not {0, 1} & set(read[0].flatten().tolist())
    assert tokenizer.decode(read[0][0]) == "a <|endoftext|> b<|pad|>"
