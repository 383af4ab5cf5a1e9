import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ava_core.losses import (
    IGNORE_INDEX,
    CrossEntropy,
    LogitZLoss,
    UnifiedLoss,
    chunked_head_loss,
    chunked_token_nll,
    shift_labels,
    token_nll,
)


def inputs(tokens=11, hidden=6, vocab=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, hidden, generator=generator, requires_grad=True),
        torch.randn(vocab, hidden, generator=generator, requires_grad=True),
        torch.randint(0, vocab, (tokens,), generator=generator),
    )


def test_uniform_logits_cost_log_v():
    nll = token_nll(torch.zeros(2, 3, 50), torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(nll, torch.full((2, 3), math.log(50)))


def test_ignored_labels_cost_nothing():
    labels = torch.tensor([1, IGNORE_INDEX, 2])
    logits = torch.randn(3, 5)
    assert token_nll(logits, labels)[1] == 0
    assert LogitZLoss()(logits, labels)[1] == 0
    kept = UnifiedLoss.standard()(labels, logits=logits).total
    torch.testing.assert_close(kept, F.cross_entropy(logits[[0, 2]], labels[[0, 2]]))


def test_labels_that_are_all_ignored_give_zero_and_not_nan():
    labels = torch.full((3,), IGNORE_INDEX)
    assert UnifiedLoss.standard()(labels, logits=torch.randn(3, 5)).total == 0


def test_token_nll_is_float32_for_bfloat16_logits():
    logits = torch.randn(4, 9).bfloat16()
    labels = torch.arange(4)
    expected = -logits.float().log_softmax(-1)[torch.arange(4), labels]
    assert token_nll(logits, labels).dtype == torch.float32
    torch.testing.assert_close(token_nll(logits, labels), expected)


def test_shifted_labels_align_with_predictions():
    assert shift_labels(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, IGNORE_INDEX]]


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 20), chunk=st.integers(1, 25), smoothing=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 9)
)
def test_chunks_of_any_size_give_the_loss_and_gradients_of_whole_logits(tokens, chunk, smoothing, seed):
    hidden, weight, labels = inputs(tokens, seed=seed)
    labels[::3] = IGNORE_INDEX
    losses = [CrossEntropy(label_smoothing=smoothing), LogitZLoss(weight=0.3)]
    total, sums = chunked_head_loss(hidden, weight, labels, losses, chunk)
    grads = torch.autograd.grad(total * 1.7, (hidden, weight))
    logits = hidden @ weight.T
    parts = [loss(logits, labels).sum() for loss in losses]
    expected = parts[0] + 0.3 * parts[1]
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sums, torch.stack(parts))
    for grad, plain in zip(grads, torch.autograd.grad(expected * 1.7, (hidden, weight)), strict=True):
        torch.testing.assert_close(grad, plain, rtol=1e-4, atol=1e-5)


def test_chunked_nll_equals_nll():
    hidden, weight, labels = inputs()
    expected = token_nll(hidden @ weight.T, labels)
    torch.testing.assert_close(chunked_token_nll(hidden, weight, labels, chunk=4), expected)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels = inputs()
    total, _ = chunked_head_loss(hidden, weight.detach(), labels, [CrossEntropy()])
    total.backward()
    assert hidden.grad is not None


def test_no_gradient_is_taken_without_grad_mode():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        total, _ = chunked_head_loss(hidden, weight, labels, [CrossEntropy()])
    assert not total.requires_grad
    torch.testing.assert_close(total, token_nll(hidden @ weight.T, labels).sum())


def test_label_smoothing_by_hand():
    hidden, weight, labels = inputs()
    log_p = (hidden @ weight.T).log_softmax(-1)
    expected = 0.9 * -log_p[torch.arange(11), labels] + 0.1 * -log_p.mean(-1)
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1)(hidden @ weight.T, labels), expected)


def test_parts_are_reported_unweighted_and_add_up():
    hidden, weight, labels = inputs()
    loss = UnifiedLoss.standard(logit_z_loss_weight=0.1, balance_loss_weight=0.5, router_z_loss_weight=0.25)
    auxiliary = {"balance_loss": torch.tensor(2.0, requires_grad=True), "router_z_loss": torch.tensor(4.0)}
    out = loss(labels, logits=hidden @ weight.T, auxiliary=auxiliary)
    assert set(out.parts) == {"cross_entropy", "logit_z_loss", "balance_loss", "router_z_loss"}
    assert all(not part.requires_grad for part in out.parts.values())
    expected = out.parts["cross_entropy"] + 0.1 * out.parts["logit_z_loss"] + 0.5 * 2 + 0.25 * 4
    torch.testing.assert_close(out.total.detach(), expected)


def test_hidden_states_give_what_logits_give():
    hidden, weight, labels = inputs()
    loss = UnifiedLoss.standard(label_smoothing=0.1, logit_z_loss_weight=0.1)
    whole = loss(labels, logits=hidden @ weight.T)
    chunked = loss(labels, hidden=hidden, head_weight_VD=weight)
    torch.testing.assert_close(whole.total, chunked.total)
    assert whole.parts.keys() == chunked.parts.keys()


def test_accumulated_batches_add_up_with_num_items():
    hidden, weight, labels = inputs()
    loss, logits = UnifiedLoss.standard(), hidden @ weight.T
    halves = sum(loss(labels[s], logits=logits[s], num_items=11).total for s in (slice(0, 4), slice(4, 11)))
    torch.testing.assert_close(halves, loss(labels, logits=logits).total)


def test_faults_are_refused_by_name():
    with pytest.raises(ValueError, match="different names"):
        UnifiedLoss([CrossEntropy(), CrossEntropy()])
    with pytest.raises(ValueError, match="cross_entropy = -1"):
        UnifiedLoss([CrossEntropy(weight=-1)])
    with pytest.raises(ValueError, match="'diversity' has no weight"):
        UnifiedLoss.standard()(torch.zeros(1, dtype=torch.long), logits=torch.zeros(1, 2), auxiliary={"diversity": 1})
    with pytest.raises(ValueError, match="exactly one of logits and hidden"):
        UnifiedLoss.standard()(torch.zeros(1, dtype=torch.long))


def test_a_new_part_needs_only_a_class():
    class Focal:
        name, weight = "focal", 0.5

        def __call__(self, logits_TV, labels_T):
            nll = F.cross_entropy(logits_TV, labels_T, reduction="none")
            return (1 - (-nll).exp()).square() * nll

    hidden, weight, labels = inputs()
    out = UnifiedLoss([CrossEntropy(), Focal()])(labels, hidden=hidden, head_weight_VD=weight)
    torch.testing.assert_close(out.total.detach(), out.parts["cross_entropy"] + 0.5 * out.parts["focal"])
