"""Extra heads are trained with the model and are no part of what is left of it."""

import pytest
import torch
from safetensors.torch import load_file

from ava_core.config.loss import LossConfig
from ava_core.losses import UnifiedLoss, future_labels, token_nll
from ava_core.models import EnhancedMoEForCausalLM, attach_prediction_heads, detach_prediction_heads


def with_heads(model, depth=2):
    model.loss_function = UnifiedLoss.from_config(LossConfig(multi_token_weight=0.5, multi_token_depth=depth))
    attach_prediction_heads(model, depth)
    return model.train()


def test_fresh_heads_predict_what_the_trunk_predicts(model, tokens):
    out = with_heads(model)(tokens, labels=tokens)
    labels = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    for depth in (1, 2):
        nll = token_nll(out.logits, future_labels(labels, depth)).sum() / 22
        torch.testing.assert_close(out.loss_parts[f"multi_token_{depth}"], nll.detach())


def test_attaching_draws_no_random_number(model):
    before = torch.get_rng_state()
    attach_prediction_heads(model, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_and_trunk_are_trained(model, tokens):
    with_heads(model)
    names = [name for name, _ in model.named_parameters() if name.startswith("prediction_heads.")]
    assert names == ["prediction_heads.heads.0.proj.weight", "prediction_heads.heads.1.proj.weight"]
    document_ids = torch.zeros_like(tokens)
    alone = {}
    for weight in (0.5, 1.0):
        model.loss_function.multi_token.weight = weight
        model.zero_grad()
        model(tokens, labels=tokens, document_ids=document_ids, return_logits=False).loss.backward()
        assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
        alone[weight] = model.model.norm.weight.grad.clone()
    assert not torch.equal(alone[0.5], alone[1.0])


def test_documents_limit_what_heads_predict(model, tokens):
    with_heads(model, depth=1)
    whole = model(tokens, labels=tokens).loss_parts["multi_token_1"]
    alone = torch.arange(tokens.shape[1]).expand_as(tokens)
    assert model(tokens, labels=tokens, document_ids=alone).loss_parts["multi_token_1"] == 0 < whole


def test_evaluation_leaves_heads_out(model, tokens):
    plain = model(tokens, labels=tokens)
    out = with_heads(model).eval()(tokens, labels=tokens)
    assert torch.equal(out.logits, plain.logits)
    assert not any(name.startswith("multi_token") for name in out.loss_parts)


def test_saved_model_has_no_heads(model, tokens, tmp_path):
    with_heads(model).save_pretrained(tmp_path)
    assert not any(name.startswith("prediction_heads") for name in load_file(tmp_path / "model.safetensors"))
    loaded = EnhancedMoEForCausalLM.from_pretrained(tmp_path)
    assert loaded.prediction_heads is None
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits)


def test_detached_model_is_as_before(model):
    names, count = list(model.state_dict()), model.num_parameters()
    heads = attach_prediction_heads(model, 2)
    assert model.num_parameters() == count + 2 * 32 * 32
    assert detach_prediction_heads(model) is heads
    assert (list(model.state_dict()), model.num_parameters()) == (names, count)
    assert detach_prediction_heads(model) is None


def test_loss_for_heads_that_are_not_there_is_refused(model, tokens):
    with_heads(model)
    detach_prediction_heads(model)
    with pytest.raises(ValueError, match=r"multi_token_depth = 2: needs attach_prediction_heads\(model, 2\) first"):
        model(tokens, labels=tokens)
    with pytest.raises(ValueError, match="depth = 0: must be >= 1"):
        attach_prediction_heads(model, 0)
