"""Rows for entries that a tokenizer got after the model was trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ava_core.models.vocabulary import grow_vocabulary


@pytest.mark.parametrize("tied", [True, False])
def test_old_entries_keep_their_rows_and_new_ones_are_their_mean(make_model, tokens, tmp_path, tied):
    model = make_model(tie_word_embeddings=tied)
    before, old = model(tokens).logits, model.config.vocab_size
    rows = [layer.weight.clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert grow_vocabulary(model, old + 3, boundary_token_id=old, pad_token_id=old + 1) == 3
    for layer, row in zip((model.get_input_embeddings(), model.get_output_embeddings()), rows, strict=True):
        assert torch.equal(layer.weight[:old], row)
        torch.testing.assert_close(layer.weight[old:], row.mean(dim=0).expand(3, -1))
    after = model(tokens).logits
    torch.testing.assert_close(after[..., :old], before)
    torch.testing.assert_close(after[..., old:], before.mean(dim=-1, keepdim=True).expand(*before.shape[:-1], 3))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens).logits, after)
    ids = loaded.config.bos_token_id, loaded.config.eos_token_id, loaded.config.pad_token_id
    assert (
        ids
        == (old, old, old + 1)
        == (old, loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id)
    )
    assert loaded.model.embed_tokens.padding_idx == old + 1


def test_new_rows_don_t_depend_on_the_random_state_and_leave_it(make_model):
    model = make_model()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        grown = make_model()
        grown.load_state_dict(model.state_dict())
        torch.set_rng_state(state)
        grow_vocabulary(grown, 70, boundary_token_id=69, pad_token_id=68)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(grown.get_input_embeddings().weight)
    assert torch.equal(*found)


def test_padding_row_is_never_trained_and_the_old_one_is(make_model, tokens):
    model = make_model(pad_token_id=3, tie_word_embeddings=False)
    grow_vocabulary(model, 70, boundary_token_id=69, pad_token_id=68)
    ids = tokens.clone()
    ids[:, :2] = torch.tensor([3, 68])
    model(ids, labels=ids).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[3].abs().sum() > 0 and gradient[68].abs().sum() == 0


def test_padded_matrix_stays_as_it_is(make_model):
    model = make_model()
    weight, old = model.get_input_embeddings().weight, model.config.vocab_size
    assert grow_vocabulary(model, old - 5, boundary_token_id=1, pad_token_id=2) == 0
    assert model.get_input_embeddings().weight is weight and model.config.vocab_size == old


def test_special_token_that_is_no_entry_is_refused(make_model):
    with pytest.raises(ValueError, match="pad_token_id = 70: must be an entry, less than vocab_size = 70"):
        grow_vocabulary(make_model(), 70, boundary_token_id=0, pad_token_id=70)
