"""Transformers' `generate` over our cache and masks."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
STRATEGIES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "top-k": {"do_sample": True, "temperature": 0.7, "top_k": 5},
    "nucleus": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "beam sampling": {"num_beams": 2, "do_sample": True},
}


def generate(model, tokens, **options):
    torch.manual_seed(3)
    return model.generate(tokens, max_new_tokens=8, min_new_tokens=8, **options)


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("router", ["top_k", "confidence"])
def test_generation_with_and_without_a_cache_agree(make_model, tokens, options, router):
    model = make_model(router=router)
    cached = generate(model, tokens, use_cache=True, **options)
    assert torch.equal(cached, generate(model, tokens, use_cache=False, **options))
    assert cached.shape == (2, 20)


def test_greedy_takes_the_most_probable_token_each_time(model, tokens):
    sequences = generate(model, tokens)
    logits = model(sequences).logits[:, 11:-1]
    logits[..., model.config.eos_token_id] = -torch.inf
    assert torch.equal(sequences[:, 12:], logits.argmax(-1))


def test_beam_search_finds_at_least_the_probability_of_greedy(model, tokens):
    def score(sequences):
        log_probabilities = model(sequences).logits[:, 11:-1].log_softmax(-1)
        return log_probabilities.gather(-1, sequences[:, 12:, None]).sum(dim=(1, 2))

    # As wide as the vocabulary, so that greedy's beginning can't fall out of the beam in two tokens.
    options = {"max_new_tokens": 2, "min_new_tokens": 2}
    beam = model.generate(tokens, num_beams=61, **options)
    greedy = model.generate(tokens, **options)
    assert (score(beam) >= score(greedy) - 1e-5).all()


def test_narrow_nucleus_and_high_min_p_are_greedy(model, tokens):
    greedy = generate(model, tokens)
    assert torch.equal(generate(model, tokens, do_sample=True, top_p=1e-6, top_k=0), greedy)
    assert torch.equal(generate(model, tokens, do_sample=True, min_p=1.0, top_k=0), greedy)


def test_contrastive_search_is_not_part_of_this_transformers(model, tokens):
    """Transformers 5 runs it only as code from its hub, which we don't trust; see docs/transformers.md."""
    with pytest.raises(ValueError, match="trust_remote_code"):
        generate(model, tokens, penalty_alpha=0.6, top_k=4)


def test_static_cache_gives_what_the_growing_cache_gives(model, tokens):
    assert torch.equal(generate(model, tokens, cache_implementation="static"), generate(model, tokens))


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_prompt_then_rest_with_a_cache_equals_all_at_once(model, tokens, kind):
    sizes = {"max_cache_len": 16} if kind is StaticCache else {}
    cache = kind(config=model.config, **sizes)
    first = model(tokens[:, :5], past_key_values=cache, use_cache=True)
    rest = model(tokens[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), model(tokens).logits, **CLOSE)


def test_generation_with_left_padding_equals_generation_without(model, tokens):
    short = tokens[1:, :7]
    alone = generate(model, short)[0, 7:]
    padding = torch.full((1, 5), model.config.pad_token_id)
    batch = torch.cat((tokens[:1], torch.cat((padding, short), 1)))
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    assert torch.equal(generate(model, batch, attention_mask=mask)[1, 12:], alone)


def test_generation_from_embeddings_equals_generation_from_ids(model, tokens):
    from_ids = generate(model, tokens)[:, 12:]
    embeds = model.get_input_embeddings()(tokens)
    torch.manual_seed(3)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=8, min_new_tokens=8), from_ids)
