"""Every option of decoding gives the tokens of Transformers' `generate` on the float model, on ONNX Runtime too."""

import pytest
import torch
from transformers import GenerationConfig as DecodingConfig

from ava_core.config.generation import GenerationConfig
from ava_core.errors import ConfigError
from ava_core.generation.decoding import generate
from ava_core.generation.text_stream import TextStream
from tests.generation.conftest import END, PADDING

PROMPT = "To be, or not to be"
PLAIN = {"temperature": 1.0, "top_p": 1.0}
CASES = {
    "no repeated bigram": ("greedy", {"no_repeat_ngram_size": 2}, {}),
    "no end before 20": ("nucleus", {"min_new_tokens": 20, "temperature": 5.0}, {}),
    "penalty and trigram": ("nucleus", {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}, {}),
    "typical": ("typical", {"typical_p": 0.6}, {"top_p": 1.0}),
    "typical by default": ("typical", {}, {"top_p": 1.0, "typical_p": 0.95}),
    "all filters": (
        "nucleus",
        {"top_k": 90, "min_p": 0.001, "typical_p": 0.9, "epsilon_cutoff": 0.002, "eta_cutoff": 0.01},
        {},
    ),
    "long beams": ("beam", {"length_penalty": 2.0, "no_repeat_ngram_size": 2, "min_new_tokens": 5}, {}),
}


def transformers_tokens(model, tokenizer, strategy, settings, changes, seed):
    """What Transformers' own `generate` finds, with none of Ava's processors."""
    wanted = settings.model_dump()
    wanted.update(changes, num_beam_groups=None, diversity_penalty=None, penalty_alpha=None)
    config = {name: value for name, value in wanted.items() if name != "stop" and value is not None}
    if strategy == "beam":
        config = {name: config[name] for name in config if name not in SAMPLING}
    else:
        config = {name: config[name] for name in config if name not in ("num_beams", "length_penalty")}
    if strategy == "greedy":
        config = {name: config[name] for name in config if name not in SAMPLING}
    sampled = strategy not in ("beam", "greedy")
    config = DecodingConfig(**config, do_sample=sampled, eos_token_id=END, pad_token_id=PADDING)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    torch.manual_seed(seed)
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, ids.shape[1] :]


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@pytest.mark.parametrize("case", CASES)
def test_option_gives_the_tokens_of_transformers(byte_model, either_model, padded_tokenizer, case):
    strategy, given, changes = CASES[case]
    settings = GenerationConfig(**{"max_new_tokens": 24, "temperature": 1.7, **given})
    differ = 0
    for seed in (1, 2) if strategy not in ("greedy", "beam") else (1,):
        tokens = transformers_tokens(byte_model, padded_tokenizer, strategy, settings, changes, seed)
        stream = TextStream(padded_tokenizer)
        expected = PROMPT + "".join([*map(stream.push, tokens.tolist()), stream.flush()])
        options = {"strategy": strategy, "seed": seed}
        assert generate(either_model, padded_tokenizer, [PROMPT], settings=settings, **options) == [expected]
        without = settings.model_copy(update={name: GenerationConfig.model_fields[name].default for name in given})
        differ += generate(either_model, padded_tokenizer, [PROMPT], settings=without, **options) != [expected]
    assert differ or not given, "the option does nothing here"


@pytest.mark.parametrize("strategy", ["contrastive", "beam", "nucleus", "typical"])
def test_text_is_the_same_alone_and_in_a_batch(either_model, padded_tokenizer, strategy):
    settings = GenerationConfig(
        max_new_tokens=9, repetition_penalty=1.5, no_repeat_ngram_size=2, num_beams=4, num_beam_groups=2
    )
    prompts = [PROMPT, "O", "Enter the KING"]
    options = {"strategy": strategy, "settings": settings, "seed": 5}
    together = generate(either_model, padded_tokenizer, prompts, **options)
    assert together == [generate(either_model, padded_tokenizer, [prompt], **options)[0] for prompt in prompts]


def test_several_samples_are_those_of_consecutive_seeds(byte_model, padded_tokenizer):
    settings = GenerationConfig(max_new_tokens=8)
    options = {"strategy": "nucleus", "settings": settings}
    texts = generate(byte_model, padded_tokenizer, [PROMPT, "O"], seed=7, num_return_sequences=3, **options)
    each = [
        generate(byte_model, padded_tokenizer, [prompt], seed=seed, **options)[0]
        for prompt in (PROMPT, "O")
        for seed in (7, 8, 9)
    ]
    assert texts == each and len(set(texts)) == 6


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_several_beams_are_different_texts_the_best_first(byte_model, padded_tokenizer, groups):
    settings = GenerationConfig(max_new_tokens=8, num_beams=4, num_beam_groups=groups)
    options = {"strategy": "beam", "settings": settings, "seed": 0}
    texts = generate(byte_model, padded_tokenizer, [PROMPT, "O"], num_return_sequences=4, **options)
    assert len(texts) == 8 and all(text.startswith(PROMPT) for text in texts[:4])
    assert [texts[0], texts[4]] == generate(byte_model, padded_tokenizer, [PROMPT, "O"], **options)
    assert groups > 1 or len(set(texts)) == 8


@pytest.mark.parametrize(
    ("strategy", "number", "says"),
    [
        ("greedy", 2, "--num-return-sequences 2: greedy finds one text"),
        ("contrastive", 2, "--num-return-sequences 2: contrastive finds one text"),
        ("beam", 5, "--num-return-sequences 5: must be <= --num-beams 4"),
    ],
)
def test_more_texts_than_there_are_is_refused(byte_model, padded_tokenizer, strategy, number, says):
    with pytest.raises(ConfigError, match=says):
        generate(
            byte_model,
            padded_tokenizer,
            [PROMPT],
            strategy=strategy,
            settings=GenerationConfig(),
            seed=0,
            num_return_sequences=number,
        )


@pytest.mark.parametrize("strategy", ["greedy", "beam", "contrastive", "nucleus"])
def test_stop_string_counts_in_new_text_only(byte_model, padded_tokenizer, strategy):
    """A string that the prompt's end begins and the new text ends is no stop: nothing would be cut out."""
    options = {"strategy": strategy, "seed": 3}
    settings = GenerationConfig(max_new_tokens=12, num_beams=2)
    [whole] = generate(byte_model, padded_tokenizer, [PROMPT], settings=settings, **options)
    across = whole[len(PROMPT) - 3 : len(PROMPT) + 1]
    settings = settings.model_copy(update={"stop": [across]})
    assert across not in whole[len(PROMPT) :]
    assert generate(byte_model, padded_tokenizer, [PROMPT], settings=settings, **options) == [whole]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups = 3: must divide num_beams = 4"),
        ({"min_new_tokens": 65}, "min_new_tokens = 65: must be <= max_new_tokens = 64"),
        ({"typical_p": 0.0}, "greater than 0"),
        ({"typical_p": 1.1}, "less than or equal to 1"),
        ({"epsilon_cutoff": 1.0}, "less than 1"),
        ({"eta_cutoff": -0.1}, "greater than or equal to 0"),
        ({"penalty_alpha": 1.5}, "less than or equal to 1"),
        ({"diversity_penalty": 0.0}, "greater than 0"),
    ],
)
def test_setting_out_of_range_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        GenerationConfig(**settings)
