"""Cross-entropy, z-loss and focal loss; chunks against whole logits; what UnifiedLoss makes of its parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ava_core import kernels
from ava_core.config.loss import LossConfig
from ava_core.losses import (
    IGNORE_INDEX,
    CrossEntropy,
    EarlyEnd,
    FocalLoss,
    LogitZLoss,
    NgramRepetition,
    Repetition,
    Rows,
    TokenContext,
    UnifiedLoss,
    chunked_head_loss,
    shift_labels,
    token_nll,
)

EVERY_PART = LossConfig(
    label_smoothing=0.1,
    temperature=1.5,
    z_loss_weight=0.2,
    focal_weight=0.3,
    focal_gamma=0.5,
    repetition_weight=0.4,
    ngram_weight=0.6,
    ngram_size=2,
    early_end_weight=0.7,
    multi_token_weight=0.8,
    multi_token_depth=2,
)


def inputs(tokens=11, hidden=6, vocab=13, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, hidden, generator=generator, dtype=dtype, requires_grad=True),
        torch.randn(vocab, hidden, generator=generator, dtype=dtype, requires_grad=True),
        torch.randint(0, vocab, (tokens,), generator=generator),
    )


def rows(logits, labels):
    return Rows(logits_TV=logits, labels_T=labels)


def test_uniform_logits_cost_log_v():
    nll = token_nll(torch.zeros(2, 3, 50), torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(nll, torch.full((2, 3), math.log(50)))


@pytest.mark.parametrize("loss", [CrossEntropy(), LogitZLoss(), FocalLoss()])
def test_ignored_labels_cost_nothing(loss):
    labels = torch.tensor([1, IGNORE_INDEX, 2])
    logits = torch.randn(3, 5, requires_grad=True)
    value = loss(rows(logits, labels))
    assert value[1] == 0 and value[0] > 0
    assert torch.autograd.grad(value.sum(), logits)[0][1].tolist() == [0.0] * 5


def test_loss_is_the_mean_over_predicted_tokens():
    labels = torch.tensor([1, IGNORE_INDEX, 2])
    logits = torch.randn(3, 5)
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


def test_label_smoothing_by_hand():
    hidden, weight, labels = inputs()
    log_p = (hidden @ weight.T).log_softmax(-1)
    expected = 0.9 * -log_p[torch.arange(11), labels] + 0.1 * -log_p.mean(-1)
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.1)(rows(hidden @ weight.T, labels)), expected)


def test_temperature_divides_the_logits():
    hidden, weight, labels = inputs()
    expected = CrossEntropy()(rows(hidden @ weight.T / 2, labels))
    torch.testing.assert_close(CrossEntropy(temperature=2.0)(rows(hidden @ weight.T, labels)), expected)


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(LogitZLoss()(rows(logits, torch.tensor([0]))), torch.tensor([math.log(4.0) ** 2]))


def test_focal_loss_by_hand():
    # p = 1/4 and 3/4: (1 - p)^2 is 9/16 and 1/16
    logits = torch.tensor([[0.0, math.log(3.0)]] * 2)
    expected = [9 / 16 * math.log(4), 1 / 16 * math.log(4 / 3)]
    torch.testing.assert_close(FocalLoss(gamma=2.0)(rows(logits, torch.tensor([0, 1]))), torch.tensor(expected))


def test_focal_loss_with_gamma_0_is_the_cross_entropy():
    hidden, weight, labels = inputs()
    given = rows(hidden @ weight.T, labels)
    torch.testing.assert_close(FocalLoss(gamma=0.0)(given), CrossEntropy()(given))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_a_certain_token_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]], requires_grad=True)
    value = FocalLoss(gamma=gamma)(rows(logits, torch.tensor([0, 0])))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(value, torch.tensor([0.0, 200.0 + math.log(2)]))
    assert grad.isfinite().all() and grad[0].abs().max() < 1e-6


@pytest.mark.parametrize(
    "loss", [CrossEntropy(label_smoothing=0.1, temperature=2.0), LogitZLoss(), FocalLoss(gamma=0.7)]
)
def test_gradients_are_those_of_finite_differences(loss):
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 3, IGNORE_INDEX, 6, int(logits[4].argmax())])
    assert torch.autograd.gradcheck(lambda x: loss(rows(x, labels)), logits)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 20), chunk=st.integers(1, 25), smoothing=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 9)
)
def test_chunks_of_any_size_give_the_loss_and_gradients_of_whole_logits(tokens, chunk, smoothing, seed):
    hidden, weight, labels = inputs(tokens, seed=seed)
    labels[::3] = IGNORE_INDEX
    context = TokenContext(inputs_BS=torch.randint(0, 4, (1, tokens)))
    losses = [
        CrossEntropy(label_smoothing=smoothing),
        LogitZLoss(weight=0.3),
        FocalLoss(weight=0.2),
        Repetition(weight=0.5),
        NgramRepetition(weight=0.7, size=2),
        EarlyEnd(weight=0.4, end_token_id=0),
    ]
    candidates = {loss.name: loss.candidates(labels[None], context) for loss in losses[3:]}
    total, sums = chunked_head_loss(hidden, weight, labels, losses, chunk, candidates)
    grads = torch.autograd.grad(total * 1.7, (hidden, weight))
    whole = Rows(logits_TV=hidden @ weight.T, labels_T=labels, candidates=candidates)
    parts = torch.stack([loss(whole).sum() for loss in losses])
    expected = (parts * torch.tensor([loss.weight for loss in losses])).sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(sums, parts)
    for grad, plain in zip(grads, torch.autograd.grad(expected * 1.7, (hidden, weight)), strict=True):
        torch.testing.assert_close(grad, plain, rtol=1e-4, atol=1e-5)


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


def test_parts_are_reported_unweighted_and_add_up():
    hidden, weight, labels = inputs()
    loss = UnifiedLoss.standard(logit_z_loss_weight=0.1, balance_loss_weight=0.5, router_z_loss_weight=0.25)
    auxiliary = {"balance_loss": torch.tensor(2.0, requires_grad=True), "router_z_loss": torch.tensor(4.0)}
    out = loss(labels, logits=hidden @ weight.T, auxiliary=auxiliary)
    assert set(out.parts) == {"cross_entropy", "logit_z_loss", "balance_loss", "router_z_loss"}
    assert all(not part.requires_grad for part in out.parts.values())
    expected = out.parts["cross_entropy"] + 0.1 * out.parts["logit_z_loss"] + 0.5 * 2 + 0.25 * 4
    torch.testing.assert_close(out.total.detach(), expected)
    torch.testing.assert_close(out.main.detach(), expected - 2.0)


def every_part(hidden, weight, inputs_BS, labels_BS, **how):
    """The loss of all parts at once; the extra heads are multiples of the trunk."""
    B, S = labels_BS.shape
    hidden_BSD = hidden.view(B, S, -1)
    loss = UnifiedLoss.from_config(EVERY_PART, balance_loss_weight=0.5, end_token_id=1)
    given = {"logits": hidden_BSD @ weight.T} if how.get("whole") else {"hidden": hidden_BSD}
    return loss(
        labels_BS,
        **given,
        head_weight_VD=weight,
        future_hidden=[hidden_BSD * 0.5, hidden_BSD * 2],
        auxiliary={"balance_loss": hidden.square().mean()},
        context=TokenContext(inputs_BS=inputs_BS, document_ids_BS=(inputs_BS == 1).cumsum(-1)),
    )


def every_part_inputs():
    hidden, weight, _ = inputs(12, 4, 5, dtype=torch.float64)
    tokens_BS = torch.tensor([[2, 3, 2, 3, 2, 2, 4], [1, 2, 3, 1, 2, 3, 3]])
    labels_BS = tokens_BS[:, 1:].clone()
    labels_BS[0, 0] = IGNORE_INDEX
    return hidden, weight, tokens_BS[:, :-1], labels_BS


def test_every_part_is_reported_by_name_and_they_add_up_to_the_loss():
    out = every_part(*every_part_inputs())
    weights = {
        "cross_entropy": 1.0,
        "logit_z_loss": 0.2,
        "focal": 0.3,
        "repetition": 0.4,
        "ngram_repetition": 0.6,
        "early_end": 0.7,
        "multi_token_1": 0.4,
        "multi_token_2": 0.4,
        "balance_loss": 0.5,
    }
    assert out.parts.keys() == weights.keys()
    assert all(part > 0 for part in out.parts.values())
    torch.testing.assert_close(out.total.detach(), sum(weights[name] * part for name, part in out.parts.items()))
    torch.testing.assert_close(out.total - out.main, 0.5 * out.parts["balance_loss"])


@pytest.mark.parametrize("whole", [True, False])
def test_every_part_has_the_gradients_of_finite_differences(whole):
    hidden, weight, inputs_BS, labels_BS = every_part_inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: every_part(h, w, inputs_BS, labels_BS, whole=whole).total, (hidden, weight)
    )


def test_hidden_states_give_what_logits_give():
    hidden, weight, inputs_BS, labels_BS = every_part_inputs()
    whole, chunked = (every_part(hidden, weight, inputs_BS, labels_BS, whole=whole) for whole in (True, False))
    torch.testing.assert_close(whole.total, chunked.total)
    assert whole.parts.keys() == chunked.parts.keys()
    for name, part in whole.parts.items():
        torch.testing.assert_close(part, chunked.parts[name])


def test_main_and_auxiliary_loss_have_gradients_of_their_own():
    hidden, weight, inputs_BS, labels_BS = every_part_inputs()
    out = every_part(hidden, weight, inputs_BS, labels_BS)
    main, total = (torch.autograd.grad(value, hidden, retain_graph=True)[0] for value in (out.main, out.total))
    torch.testing.assert_close(total - main, 0.5 * 2 * hidden.detach() / hidden.numel())


def test_parts_of_weight_0_are_left_out():
    loss = UnifiedLoss.from_config(LossConfig())
    assert [part.name for part in loss.token_losses] == ["cross_entropy"]
    assert loss.multi_token is None and not loss.needs_context


@pytest.mark.parametrize("path", ["auto", "native", "onednn", "off"])
def test_standard_loss_keeps_the_kernels(path, monkeypatch):
    """The parts that the native kernel knows; any other takes the reference path."""
    if path == "native" and kernels.library.loaded() is None:
        pytest.skip("the native kernels aren't built, or this CPU lacks AVX-512 BF16")
    monkeypatch.setenv("AVA_KERNELS", path)
    hidden, weight = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.bfloat16)
    from ava_core.losses import chunked

    usable = path != "off" and kernels.library.loaded() is not None
    for config in (LossConfig(), LossConfig(label_smoothing=0.1, z_loss_weight=1e-4)):
        assert chunked._native_can(hidden, weight, UnifiedLoss.from_config(config).token_losses) == usable
    for config in (LossConfig(temperature=2.0), LossConfig(focal_weight=1.0), LossConfig(repetition_weight=1.0)):
        assert not chunked._native_can(hidden, weight, UnifiedLoss.from_config(config).token_losses)


def test_accumulated_batches_add_up_with_num_items():
    hidden, weight, labels = inputs()
    loss, logits = UnifiedLoss.standard(), hidden @ weight.T
    halves = sum(loss(labels[s], logits=logits[s], num_items=11).total for s in (slice(0, 4), slice(4, 11)))
    torch.testing.assert_close(halves, loss(labels, logits=logits).total)


def test_faults_are_refused_by_name():
    labels, logits = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="different names"):
        UnifiedLoss([CrossEntropy(), CrossEntropy()])
    with pytest.raises(ValueError, match="cross_entropy = -1"):
        UnifiedLoss([CrossEntropy(weight=-1)])
    with pytest.raises(ValueError, match="'diversity' has no weight"):
        UnifiedLoss.standard()(labels, logits=logits, auxiliary={"diversity": 1})
    with pytest.raises(ValueError, match="exactly one of logits and hidden"):
        UnifiedLoss.standard()(labels)
    with pytest.raises(ValueError, match="must come with head_weight_VD"):
        UnifiedLoss.standard()(labels, hidden=logits)
    with pytest.raises(ValueError, match="early_end: needs the token that ends documents"):
        UnifiedLoss.from_config(LossConfig(early_end_weight=1.0))
    with pytest.raises(ValueError, match="repetition: needs input_ids"):
        UnifiedLoss([Repetition()])(labels, logits=logits)
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 2\): must have one shape"):
        context = TokenContext(inputs_BS=torch.zeros(1, 3, dtype=torch.long))
        UnifiedLoss([Repetition()])(labels, logits=logits, context=context)


def test_a_new_part_needs_only_a_class():
    class Brier:
        name, weight = "brier", 0.5

        def __call__(self, rows):
            return (rows.logits_TV.softmax(-1) - F.one_hot(rows.labels_T, 13)).square().sum(-1)

    hidden, weight, labels = inputs()
    out = UnifiedLoss([CrossEntropy(), Brier()])(labels, hidden=hidden, head_weight_VD=weight)
    torch.testing.assert_close(out.total.detach(), out.parts["cross_entropy"] + 0.5 * out.parts["brier"])


@pytest.mark.parametrize("label", [13, 10**7, -1, -101, -(2**62)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("losses", [[CrossEntropy()], [LogitZLoss()], [CrossEntropy(), LogitZLoss()]])
def test_label_that_is_no_token_is_refused_on_every_path(label, dtype, losses):
    """A wrong loss would be plausible, and a negative label would count in the divisor."""
    hidden, weight, labels = inputs(hidden=8, vocab=14 if dtype == torch.bfloat16 else 13, dtype=dtype)
    label = 14 if label == 13 and dtype == torch.bfloat16 else label
    labels[[2, 5]] = IGNORE_INDEX
    loss = UnifiedLoss(losses)
    for predictions in ({"logits": hidden @ weight.T}, {"hidden": hidden, "head_weight_VD": weight}):
        loss(labels, **predictions)
        wrong = labels.clone()
        wrong[7] = label
        with pytest.raises(IndexError, match=f"label.* = {label}: must be -100, or at least 0 and less than"):
            loss(wrong, **predictions)
    with pytest.raises(IndexError):
        token_nll(hidden @ weight.T, wrong)
