"""Several documents in one sequence: no token attends across them."""

import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def packed(tokens):
    """Two documents, and both in one sequence."""
    first, second = tokens[:1, :5], tokens[1:, :7]
    return first, second, torch.cat((first, second), 1)


@pytest.mark.parametrize("router", ["top_k", "confidence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_in_one_sequence_equal_separate_sequences(make_model, packed, dtype, router):
    model = make_model(router=router)
    first, second, both = packed
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(both, document_ids=documents).logits.float()
        alone = torch.cat((model(first).logits, model(second).logits), 1).float()
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
    torch.testing.assert_close(out, alone, **tolerance)


def test_positions_that_begin_anew_begin_a_document(model, packed):
    """How collators for padding-free training (TRL, Transformers) mark documents."""
    first, second, both = packed
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    out = model(both, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(out, torch.cat((model(first).logits, model(second).logits), 1), **CLOSE)


def test_no_gradient_crosses_documents(model, packed):
    _, _, both = packed
    embeds = model.get_input_embeddings()(both).detach().requires_grad_()
    documents = torch.tensor([[0] * 5 + [1] * 7])
    model(inputs_embeds=embeds, document_ids=documents).logits[:, 5:].square().sum().backward()
    assert (embeds.grad[:, :5] == 0).all()
    assert (embeds.grad[:, 5:] != 0).any()


def test_documents_and_padding_together_stay_finite(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    documents = torch.zeros_like(tokens)
    out = model(tokens, attention_mask=mask, document_ids=documents)
    assert torch.isfinite(out.logits).all()
    torch.testing.assert_close(out.logits[1], model(tokens).logits[1], **CLOSE)


def test_documents_with_a_filled_cache_or_a_finished_mask_are_refused(model, tokens):
    cache = model(tokens, use_cache=True).past_key_values
    documents = torch.zeros_like(tokens)
    with pytest.raises(ValueError, match="document_ids: must be None when past_key_values"):
        model(tokens, past_key_values=cache, document_ids=documents)
    with pytest.raises(ValueError, match="attention_mask = 4 dimensions: must be 2"):
        model(tokens, attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool), document_ids=documents)
