"""Scores of whole sequences, wherever their padding is."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, EnhancedMoEForSequenceClassification
from tests.models.conftest import TINY

PAD = TINY["pad_token_id"]


def build(**changes):
    torch.manual_seed(0)
    config = EnhancedMoEConfig(**{**TINY, "num_layers": 2, "num_labels": 3, **changes})
    model = EnhancedMoEForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def padded(rows, side):
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), PAD), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return ids, mask


ROWS = [[5, 9, 17, 33], [8, 3], [40, 41, 42, 43, 44, 45, 2]]
"""The last ends with the padding token, as a text whose end token pads does."""


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score(side):
    model = build()
    ids, mask = padded(ROWS, side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.shape == (3, 3)
    for row, found in zip(ROWS, logits, strict=True):
        alone = model(torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_without_a_mask_the_padding_token_tells_the_end():
    model = build()
    ids, mask = padded(ROWS[:2], "right")
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=mask).logits, rtol=1e-4, atol=1e-5)
    embeds = model.get_input_embeddings()(ids[:1])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids[:1]).logits)
    with pytest.raises(ValueError, match=r"2 sequences without attention_mask: can't tell where they end"):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"pass it, or input_ids with config\.pad_token_id set"):
        model(ids)


@pytest.mark.parametrize(
    ("num_labels", "labels", "expected"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0]), lambda logits, labels: F.mse_loss(logits.squeeze(), labels)),
        (3, torch.tensor([2, 0, 1]), F.cross_entropy),
        (2, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), F.binary_cross_entropy_with_logits),
    ],
)
def test_loss_is_that_of_the_labels_and_the_routers(num_labels, labels, expected):
    model = build(num_labels=num_labels, balance_loss_weight=2.0, router_z_loss_weight=0.1).train()
    ids, mask = padded(ROWS, "left")
    output = model(ids, attention_mask=mask, labels=labels)
    main = expected(output.logits, labels)
    assert output.aux_loss > 0.1
    torch.testing.assert_close(output.loss, main + output.aux_loss)
    found = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
    outside = expected(model(ids, attention_mask=mask).logits, labels)  # as TRL's RewardTrainer has it
    same = torch.autograd.grad(outside, list(model.parameters()), allow_unused=True)
    for one, other in zip(found, same, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_language_model_becomes_a_classifier_and_is_found_again(tmp_path):
    config = EnhancedMoEConfig(**{**TINY, "num_layers": 2})
    EnhancedMoEForCausalLM(config).save_pretrained(tmp_path / "language")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "language", num_labels=1)
    assert isinstance(model, EnhancedMoEForSequenceClassification)
    assert model.score.weight.shape == (1, 32) and model.score.weight.isfinite().all()
    model.save_pretrained(tmp_path / "reward")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    ids, mask = padded(ROWS, "left")
    assert torch.equal(again(ids, attention_mask=mask).logits, model.eval()(ids, attention_mask=mask).logits)
