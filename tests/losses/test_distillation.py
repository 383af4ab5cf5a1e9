"""The divergence from a teacher, held against its definition over the whole vocabulary."""

import pytest
import torch
from torch.nn import functional as F

from ava_core.config.loss import LossConfig
from ava_core.config.train_sections import TeacherConfig
from ava_core.losses import IGNORE_INDEX, Distillation, Rows, TeacherTargets, TokenContext, UnifiedLoss

B, S, V, D = 2, 5, 11, 6


def targets_of(teacher, k, temperature):
    log_probs = (teacher / temperature).log_softmax(-1)
    top, ids = log_probs.topk(k, dim=-1)
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return TeacherTargets(ids_TK=ids.int(), log_probs_TK1=torch.cat((top, rest), -1))


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(B, S, V, generator=generator, dtype=torch.float64)
    hidden = torch.randn(B, S, D, generator=generator, dtype=torch.float64)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(V, (B, S), generator=generator)
    labels[0, 2] = IGNORE_INDEX
    return teacher, hidden, head, labels


def part(logits, targets, labels, temperature):
    loss = Distillation(temperature=temperature)
    rows = Rows(logits_TV=logits, labels_T=labels.reshape(-1), candidates={loss.name: targets.flat()})
    return loss(rows)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_over_the_whole_vocabulary_it_is_the_divergence_and_has_its_gradient(case, temperature):
    teacher, hidden, head, labels = case
    logits = (hidden @ head.T).reshape(-1, V).requires_grad_()
    own = part(logits, targets_of(teacher, V, temperature), labels, temperature)
    student, expert = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1).reshape(-1, V)
    dense = F.kl_div(student, expert, log_target=True, reduction="none").sum(-1) * (labels.reshape(-1) != IGNORE_INDEX)
    torch.testing.assert_close(own, dense, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (own, dense)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert gradients[0].isfinite().all() and gradients[0].abs().max() > 0.01


def test_with_a_rest_it_is_the_divergence_of_the_coarser_distributions(case):
    teacher, hidden, head, labels = case
    logits = (hidden @ head.T).reshape(-1, V).requires_grad_()
    targets = targets_of(teacher, 3, 1.0)
    own = part(logits, targets, labels, 1.0)
    ids, p = targets.flat().ids_TK.long(), logits.softmax(-1)
    chosen = p.gather(1, ids)
    student = torch.cat((chosen, 1 - chosen.sum(-1, keepdim=True)), -1).log()
    coarse = F.kl_div(student, targets.flat().log_probs_TK1, log_target=True, reduction="none").sum(-1)
    coarse = coarse * (labels.reshape(-1) != IGNORE_INDEX)
    torch.testing.assert_close(own, coarse, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (own, coarse)))
    whole = part(logits, targets_of(teacher, V, 1.0), labels, 1.0)
    assert (own >= 0).all() and (own <= whole + 1e-12).all() and (own < whole - 1e-3).any()


def test_a_model_like_its_teacher_has_none_of_it_and_no_gradient(case):
    teacher = case[0].reshape(-1, V).clone().requires_grad_()
    for k in (2, V):
        own = part(teacher, targets_of(case[0], k, 1.5), torch.zeros(B, S, dtype=torch.int64), 1.5)
        gradient = torch.autograd.grad(own.sum(), teacher)[0]
        assert own.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_in_chunks_it_is_what_it_is_on_all_logits(case, monkeypatch):
    monkeypatch.setattr("ava_core.losses.chunked.chunked_head_loss.__defaults__", (3, None))
    teacher, hidden, head, labels = case
    config = TeacherConfig(model="any", weight=0.25, temperature=2.0)
    loss = UnifiedLoss.from_config(LossConfig(), teacher=config)
    hidden, head = hidden.float().requires_grad_(), head.float().requires_grad_()
    targets = targets_of(teacher.float(), 4, 2.0)
    context = TokenContext(teacher=targets)
    chunked = loss(labels, hidden=hidden, head_weight_VD=head, context=context)
    whole = loss(labels, logits=hidden @ head.T, context=context)
    torch.testing.assert_close(chunked.total, whole.total)
    for one, other in zip(*(torch.autograd.grad(x.total, (hidden, head)) for x in (chunked, whole)), strict=True):
        torch.testing.assert_close(one, other)
    parts = whole.parts
    expected = 0.75 * parts["cross_entropy"] + 0.25 * 2.0**2 * parts["teacher_kl"]
    torch.testing.assert_close(whole.total, expected)


def test_a_batch_without_predictions_or_with_others_is_refused(case):
    teacher, hidden, head, labels = case
    loss = UnifiedLoss.from_config(LossConfig(), teacher=TeacherConfig(model="any"))
    with pytest.raises(ValueError, match="teacher_kl: needs the teacher's predictions"):
        loss(labels, logits=hidden @ head.T)
    with pytest.raises(ValueError, match=r"teacher_kl: predictions and labels = \(2, 4\) and \(2, 5\)"):
        loss(labels, logits=hidden @ head.T, context=TokenContext(teacher=targets_of(teacher[:, 1:], 3, 1.0)))
