"""What lm-eval gets from our decoders is what it gets from the same model through its own `--model hf`."""

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ava_core.errors import AvaError
from ava_core.generation.loading import load_model
from ava_core.tasks.language_model import BenchmarkedModel

LINES = ["My lord, the king is", "What news, good cousin?\n", "Enter the", "O"]
CONTINUATIONS = [" here", " dead and gone", " not so bold as he was", "\nGood"]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


@pytest.fixture(scope="module")
def float_model(tiny_model):
    return load_model(tiny_model, threads=1)


@pytest.fixture(scope="module")
def hf(float_model):
    model, tokenizer = float_model
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")


@pytest.fixture(params=["float", "int8"])
def ours(request, float_model):
    if request.param == "float":
        return BenchmarkedModel(*float_model, rows=3)
    return BenchmarkedModel(*load_model(request.getfixturevalue("tiny_int8"), threads=1), rows=3)


def pairs():
    """Choices of one context, contexts with a beginning in common, none at all, and one beyond the context."""
    shots = "Come, sir, come.\n" * 3
    arguments = [(line, choice) for line in LINES for choice in CONTINUATIONS]
    arguments += [(shots + line, choice) for line in LINES for choice in CONTINUATIONS[:2]]
    arguments += [("", "To be, or not"), ("The quality of mercy is not strained. " * 12, " It droppeth")]
    return instances("loglikelihood", arguments)


def test_likelihoods_are_those_of_lm_evals_own_model(ours, hf):
    found, expected = ours.loglikelihood(pairs()), hf.loglikelihood(pairs(), disable_tqdm=True)
    if ours.model is hf.model:
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    else:  # rounded weights
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=0.05, abs=0.3)


def test_likelihoods_of_a_model_with_a_sliding_window_are_those_of_lm_evals_own(float_model):
    model, tokenizer = copy.deepcopy(float_model[0]), float_model[1]
    model.config.sliding_window, model.config.layer_types = 6, ["sliding_attention"] * model.config.num_layers
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
    found = BenchmarkedModel(model, tokenizer, rows=3).loglikelihood(pairs())
    assert found == [(pytest.approx(nats, abs=1e-4), greedy) for nats, greedy in theirs.loglikelihood(pairs())]
    assert found[0][0] != pytest.approx(BenchmarkedModel(*float_model, rows=3).loglikelihood(pairs())[0][0], abs=1e-3)


def test_order_and_rows_change_nothing(float_model):
    one, many = (BenchmarkedModel(*float_model, rows=rows) for rows in (1, 7))
    expected = one.loglikelihood(pairs())
    found = many.loglikelihood(pairs()[::-1])[::-1]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)


def test_rolling_likelihoods_are_those_of_lm_evals_own_model(float_model, hf, corpus_text):
    texts = instances("loglikelihood_rolling", [(corpus_text[:900],), ("Short.",), (corpus_text[2000:2300],)])
    found = BenchmarkedModel(*float_model, rows=2).loglikelihood_rolling(texts)
    assert found == pytest.approx(hf.loglikelihood_rolling(texts, disable_tqdm=True), rel=1e-6, abs=1e-3)


def test_greedy_texts_are_those_of_lm_evals_own_model(float_model, hf):
    settings = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    asked = instances("generate_until", [(line, dict(settings)) for line in LINES])
    texts = BenchmarkedModel(*float_model, rows=4).generate_until(asked)
    assert texts == hf.generate_until(asked, disable_tqdm=True)
    assert any(texts)
    assert not any("\n" in text for text in texts)


def test_sampling_leaves_the_process_as_it_was_and_repeats(float_model):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    model = BenchmarkedModel(*float_model, rows=4)
    state = torch.get_rng_state()
    first = model.generate_until(instances("generate_until", [("To be", dict(settings))]))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generate_until(instances("generate_until", [("To be", dict(settings))])) == first


def test_task_that_writes_more_than_the_context_is_refused_by_its_setting(float_model):
    asked = instances("generate_until", [("To be", {"until": [], "max_gen_toks": 128})])
    with pytest.raises(AvaError, match="max_gen_toks"):
        BenchmarkedModel(*float_model, rows=4).generate_until(asked)
