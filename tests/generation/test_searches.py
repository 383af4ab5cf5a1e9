"""Contrastive and diverse beam search against plain loops, on PyTorch and on both ONNX graphs."""

import pytest
import torch
from transformers import GenerationConfig as DecodingConfig
from transformers import LogitsProcessorList, StoppingCriteriaList

from ava_core.generation.contrastive import contrastive_search
from ava_core.generation.diverse_beams import diverse_beam_search
from tests.generation import searches
from tests.onnx.conftest import export, make_model  # noqa: F401  fixtures

END, PADDING = 7, 0
PROMPTS = [[5, 9, 33, 70, 12], [41, 8], [3]]


@pytest.fixture(params=["torch", "fused", "portable", "int8"])
def model(request, make_model, export):  # noqa: F811
    made = make_model()
    if request.param == "torch":
        return made
    bits = 8 if request.param == "int8" else 32
    return export(made, bits=bits, portable=request.param == "portable")


def batch(prompts):
    longest = max(map(len, prompts))
    padded = [[PADDING] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def plain(sequences, prompts, each=1):
    """New tokens of every row, up to the end token."""
    start = max(map(len, prompts))
    for row in sequences.tolist():
        new = row[start:]
        yield new[: new.index(END) + 1] if END in new else new


def run(search, model, prompts, end=END, **options):
    with torch.no_grad():
        return search(
            model,
            batch(prompts),
            processors=LogitsProcessorList(),
            criteria=StoppingCriteriaList(),
            ends=[end],
            padding=PADDING,
            **options,
        )


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (1.0, 3)])
def test_contrastive_search_finds_the_tokens_of_the_paper_s_equation(model, alpha, k):
    found = run(contrastive_search, model, PROMPTS, max_new_tokens=6, penalty_alpha=alpha, top_k=k)
    expected = [searches.contrastive(model, ids, alpha=alpha, k=k, new=6, end=END)[len(ids) :] for ids in PROMPTS]
    assert list(plain(found, PROMPTS)) == expected


@pytest.mark.parametrize(("alpha", "k"), [(0.0, 5), (0.6, 1)])
def test_contrastive_search_without_penalty_or_choice_is_greedy(make_model, alpha, k):  # noqa: F811
    model = make_model()
    found = run(contrastive_search, model, PROMPTS[:1], max_new_tokens=12, penalty_alpha=alpha, top_k=k)
    config = DecodingConfig(max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=PADDING)
    expected = model.generate(torch.tensor(PROMPTS[:1]), generation_config=config)
    assert torch.equal(found, expected)


def test_penalty_changes_what_contrastive_search_finds(make_model):  # noqa: F811
    model = make_model()
    texts = [
        run(contrastive_search, model, PROMPTS[:1], max_new_tokens=12, penalty_alpha=alpha, top_k=8).tolist()
        for alpha in (0.0, 0.6, 1.0)
    ]
    assert texts[0] != texts[1] != texts[2]


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 0.5), (3, 3, 2.0)])
def test_diverse_beams_are_those_of_the_paper_s_algorithm(model, beams, groups, penalty):
    options = {"length_penalty": 0.7, "diversity_penalty": penalty}
    found = run(
        diverse_beam_search,
        model,
        PROMPTS[:2],
        max_new_tokens=5,
        num_beams=beams,
        num_beam_groups=groups,
        num_return_sequences=groups,
        **options,
    )
    best = []
    for ids in PROMPTS[:2]:
        ended = searches.diverse_beams(
            model, ids, beams=beams, groups=groups, penalty=penalty, length_penalty=0.7, new=5, end=END
        )
        ranked = sorted((group[0] for group in ended), key=lambda text: -text[0])
        best += [tokens[len(ids) :] for _, tokens in ranked]
    assert list(plain(found, PROMPTS[:2])) == best


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("end", [7, 33, 55])
def test_one_group_of_beams_is_the_beam_search_of_transformers(make_model, length_penalty, end):  # noqa: F811
    model = make_model()
    options = {"max_new_tokens": 9, "num_beams": 4, "length_penalty": length_penalty, "num_return_sequences": 3}
    found = run(diverse_beam_search, model, PROMPTS, end=end, num_beam_groups=1, diversity_penalty=1.0, **options)
    config = DecodingConfig(**options, do_sample=False, early_stopping=False, eos_token_id=end, pad_token_id=PADDING)
    expected = model.generate(**batch(PROMPTS), generation_config=config)
    assert torch.equal(found, expected)


def test_groups_of_one_beam_begin_with_different_tokens_under_a_great_penalty(make_model):  # noqa: F811
    options = {"num_beams": 4, "num_beam_groups": 4, "num_return_sequences": 4, "length_penalty": 1.0}
    found = run(diverse_beam_search, make_model(), PROMPTS[:1], max_new_tokens=3, diversity_penalty=100.0, **options)
    assert len(set(found[:, len(PROMPTS[0])].tolist())) == 4
