import numpy as np
import pytest
import torch

from ava_core.errors import AvaError, ConfigError
from ava_core.onnx.session import DecoderSession, Experts
from tests.onnx.test_portable import VARIANTS

NARROW_HEADS = {"multi-head"}
VARIANTS = {name: {"head_dim": 16, **changes} for name, changes in VARIANTS.items() if name not in NARROW_HEADS}
ATOL = 5e-5


def tokens(batch: int = 2, length: int = 19) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 97, (batch, length))


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, make_model):
    return make_model(**request.param)


@pytest.fixture
def decoder(model, export):
    export(model)
    return DecoderSession.load(export.folder, threads=1)


@torch.no_grad()
def logits_of(model, rows: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(rows), use_cache=False).logits.numpy()


@torch.no_grad()
def test_graph_computes_what_the_model_does_and_takes_its_experts(model, decoder):
    rows, experts = tokens(), Experts()
    expected = model(torch.from_numpy(rows), use_cache=False, output_router_logits=True)
    found = decoder.run(rows, decoder.cache(2, 32), all_logits=True, experts=experts)
    np.testing.assert_allclose(found, expected.logits, atol=ATOL)
    for layer, (logits, choices) in enumerate(zip(expected.router_logits, expected.router_choices, strict=True)):
        np.testing.assert_allclose(experts.logits[layer].reshape(logits.shape), logits, atol=ATOL)
        np.testing.assert_array_equal(experts.weights[layer].reshape(choices.shape) > 0, choices)


def test_rows_of_different_lengths_prompts_in_chunks_and_single_tokens_agree_with_one_pass(model, decoder):
    rows = tokens(3)
    expected = logits_of(model, rows)
    cache = decoder.cache(4, 24)
    first = decoder.run(rows[:, :7], cache, first_row=1, new_tokens_B=np.array([7, 2, 5])).copy()
    np.testing.assert_allclose(first, expected[range(3), [6, 1, 4]], atol=ATOL)
    # The next chunk has another number of tokens for each row, too.
    chunk = np.stack([rows[row, start : start + 6] for row, start in enumerate((7, 2, 5))])
    second = decoder.run(chunk, cache, first_row=1, new_tokens_B=np.array([1, 6, 3])).copy()
    np.testing.assert_allclose(second, expected[range(3), [7, 7, 7]], atol=ATOL)
    for position in (8, 9):
        found = decoder.run(rows[:, position, None], cache, first_row=1)
        np.testing.assert_allclose(found, expected[:, position], atol=ATOL)
    assert cache.lengths.tolist() == [0, 10, 10, 10]


def test_moved_row_goes_on_where_it_was(make_model, export):
    model = make_model(head_dim=16)
    export(model)
    decoder = DecoderSession.load(export.folder, threads=1)
    rows = tokens(3)
    expected = logits_of(model, rows)
    cache = decoder.cache(3, 24)
    decoder.run(rows[:, :10], cache)
    cache.move(2, 0)
    np.testing.assert_allclose(decoder.run(rows[[2], 10][:, None], cache), expected[[2], 10], atol=ATOL)
    cache.lengths[1] = 4
    np.testing.assert_allclose(decoder.run(rows[[1], 4][:, None], cache, first_row=1), expected[[1], 4], atol=ATOL)


def test_more_than_the_cache_holds_is_refused(make_model, export):
    export(make_model(head_dim=16))
    decoder = DecoderSession.load(export.folder, threads=1)
    cache = decoder.cache(2, 8)
    for rows, first in ((tokens(1, 9), 0), (tokens(2, 4), 1)):
        with pytest.raises(ValueError, match="the cache holds 2 rows of 8 tokens"):
            decoder.run(rows, cache, first_row=first)
    with pytest.raises(ValueError, match=r"capacity = 257: must be in 1 \.\. 256"):
        decoder.cache(1, 257)


def test_heads_that_the_operator_refuses_are_refused_by_name(make_model, export):
    with pytest.raises(ConfigError, match=r"model\.head_dim = 8: .* set quantize.portable = true"):
        export(make_model(head_dim=8))


def test_portable_graph_has_no_cache_in_place(make_model, export):
    export(make_model(head_dim=8), portable=True)
    with pytest.raises(AvaError, match="is the portable graph"):
        DecoderSession.load(export.folder)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_token(make_model, export, side):
    model = make_model(head_dim=16)
    candidate = export(model)
    short, long = tokens(2)
    mask = torch.ones(2, 19, dtype=torch.long)
    padding = slice(0, 6) if side == "left" else slice(13, 19)
    real = slice(6, 19) if side == "left" else slice(0, 13)
    mask[0, padding] = 0
    batch = torch.from_numpy(np.stack([short, long]))
    found = candidate(batch, attention_mask=mask, use_cache=False, output_router_logits=True)
    expected = model(batch[:1, real], use_cache=False, output_router_logits=True)
    np.testing.assert_allclose(found.logits[0, real], expected.logits[0], atol=ATOL)
    np.testing.assert_allclose(found.logits[1], logits_of(model, long[None])[0], atol=ATOL)
    choices = found.router_choices[1].view(2, 19, -1)[0, real]
    assert torch.equal(choices, expected.router_choices[1])


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(make_model, export):
    model = make_model(head_dim=16)
    candidate = export(model)
    batch = torch.from_numpy(tokens())
    documents = torch.tensor([[3] * 7 + [4] * 12, [5] * 19])
    arguments = {"document_ids": documents, "use_cache": False, "output_router_logits": True}
    expected, found = model(batch, **arguments), candidate(batch, **arguments)
    np.testing.assert_allclose(found.logits, expected.logits, atol=ATOL)
    for ours, theirs in zip(found.router_choices, expected.router_choices, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}])
def test_generate_gives_the_words_of_the_model(make_model, export, options):
    model = make_model(head_dim=16)
    candidate = export(model)
    batch = torch.from_numpy(tokens(2, 9))
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    texts = []
    for each in (model, candidate):
        torch.manual_seed(7)
        texts.append(each.generate(batch, attention_mask=mask, max_new_tokens=90, pad_token_id=0, **options))
    assert torch.equal(*texts)


@torch.no_grad()
def test_more_tokens_than_the_context_are_refused(make_model, export):
    candidate = export(make_model(head_dim=16, max_position_embeddings=16))
    with pytest.raises(ValueError, match="17 tokens: the model's context holds 16"):
        candidate(torch.from_numpy(tokens(1, 17)))
    with pytest.raises(ValueError, match=r"prompt of 17 tokens: the model's context .* is 16: shorten it"):
        candidate.generate(torch.from_numpy(tokens(1, 17)), max_new_tokens=1, pad_token_id=0)
    # What is generated ends with the context, as with the model itself.
    written = candidate.generate(torch.from_numpy(tokens(1, 12)), max_new_tokens=8, pad_token_id=0, eos_token_id=[])
    assert written.shape == (1, 16)
