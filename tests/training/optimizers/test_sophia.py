from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ava_core.losses import IGNORE_INDEX, UnifiedLoss
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.optimizers import Sophia, curvature_generator, sample_labels, sampled_label_gradients


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)

    def forward(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids).tanh())


class TinySoftmax(nn.Module):
    """An embedding and a head, called as our model is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = Trunk()
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.unused = nn.Parameter(torch.ones(2))


def make_model():
    torch.manual_seed(0)
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=31, hidden_size=16, num_layers=1, num_attention_heads=2, num_ffn_experts=2,
            expert_intermediate_size=8,
        )
    )  # fmt: skip


def test_two_steps_by_hand():
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Sophia([p], lr=0.1, betas=(0.9, 0.8), gamma=0.5, weight_decay=0.2)
    first, second = torch.tensor([1.0, 0.5, -3.0]), torch.tensor([-2.0, 0.5, -1.0])
    # Mean gradients on drawn labels, of 4 tokens: sums of 4 of them.
    optimizer.update_curvature({p: 4 * torch.tensor([1.0, 0.1, 0.0])}, tokens=4)
    p.grad = first
    optimizer.step()
    momentum = 0.1 * first
    curvature = 0.2 * 4 * torch.tensor([1.0, 0.01, 0.0])
    # 0.1 / 0.4; 0.05 / 0.004 and a coordinate without curvature are clipped.
    assert (momentum / (0.5 * curvature)).tolist()[0] == pytest.approx(0.25)
    weight = torch.tensor([1.0, -2.0, 3.0]) * (1 - 0.1 * 0.2) - 0.1 * torch.tensor([0.25, 1.0, -1.0])
    torch.testing.assert_close(p.detach(), weight)

    optimizer.update_curvature({p: 4 * torch.tensor([0.5, 2.0, 1.0])}, tokens=4)
    p.grad = second
    optimizer.step()
    momentum = 0.9 * momentum + 0.1 * second
    curvature = 0.8 * curvature + 0.2 * 4 * torch.tensor([0.25, 4.0, 1.0])
    weight = weight * (1 - 0.1 * 0.2) - 0.1 * (momentum / (0.5 * curvature)).clamp(-1, 1)
    torch.testing.assert_close(p.detach(), weight)


def test_without_an_estimate_it_moves_by_the_sign_of_the_momentum():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-3, -5.0, 0.0])
    Sophia([p], lr=0.1).step()
    assert p.tolist() == pytest.approx([-0.1, 0.1, 0.0])


def test_the_estimate_is_unbiased():
    model, tokens = TinySoftmax(), torch.tensor([[0, 1, 2], [3, 1, 0]])
    parameters = [model.model.embedding.weight, model.lm_head.weight]
    exact = [torch.zeros_like(p) for p in parameters]  # mean over tokens of E_y [gradient^2]
    for token in tokens.flatten():
        log_p = F.linear(model.model(token[None]).last_hidden_state, model.lm_head.weight).log_softmax(-1)[0]
        for y in range(5):
            grads = torch.autograd.grad(-log_p[y], parameters, retain_graph=True)
            for total, grad in zip(exact, grads, strict=True):
                total += log_p[y].exp().item() * grad.square() / tokens.numel()
    draws: list[list[torch.Tensor]] = [[], []]
    generator = curvature_generator(0, 0)
    for _ in range(800):
        sums, count = sampled_label_gradients(model, [{"input_ids": tokens}], generator)
        assert count == tokens.numel()
        for seen, p in zip(draws, parameters, strict=True):
            seen.append(sums[p].square() / count)
    for seen, truth in zip(draws, exact, strict=True):
        stacked = torch.stack(seen)
        error = stacked.std(dim=0) / len(seen) ** 0.5
        assert ((stacked.mean(dim=0) - truth).abs() < 5 * error + 1e-7).all()
        assert stacked.mean() == pytest.approx(truth.mean().item(), rel=0.1)


def test_gradients_are_those_of_the_models_loss_on_the_drawn_labels():
    model, tokens = make_model(), torch.randint(0, 31, (4, 6), generator=torch.Generator().manual_seed(0))
    model.loss_function = UnifiedLoss.standard()
    passes = [{"input_ids": tokens[:1]}, {"input_ids": tokens[1:]}]
    sums, count = sampled_label_gradients(model, passes, curvature_generator(1, 2))
    assert all(p.grad is None for p in model.parameters())
    generator, drawn = curvature_generator(1, 2), []
    for inputs in passes:
        hidden = model.model(**inputs).last_hidden_state
        drawn.append(sample_labels(hidden.flatten(0, 1), model.lm_head.weight, generator).view(hidden.shape[:2]))
    labels = torch.cat(drawn)
    model(tokens, shift_labels=labels, return_logits=False).loss.backward()
    assert count == tokens.numel() and len(labels.unique()) > 5
    for name, p in model.named_parameters():
        if p in sums:
            torch.testing.assert_close(sums[p] / count, p.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert {id(p) for p in sums} == {id(p) for p in model.parameters() if p.grad is not None}


def test_an_estimate_depends_on_its_seed_step_and_rank_alone():
    model, tokens = TinySoftmax(), torch.arange(4).repeat(2, 8)

    def estimate(*key):
        return sampled_label_gradients(model, [{"input_ids": tokens}], curvature_generator(*key))[0]

    first, again = estimate(0, 10, 1), estimate(0, 10, 1)
    assert all(torch.equal(first[p], again[p]) for p in first)
    for other in ((1, 10, 1), (0, 20, 1), (0, 10, 0)):
        assert not torch.equal(estimate(*other)[model.lm_head.weight], first[model.lm_head.weight])
    assert model.unused not in first


def test_ignored_positions_have_no_part():
    model, tokens = TinySoftmax(), torch.tensor([[0, 0, 3]])
    labels = torch.tensor([[1, 2, IGNORE_INDEX]])
    passes = [{"input_ids": tokens, "shift_labels": labels}]
    sums, count = sampled_label_gradients(model, passes, curvature_generator(0, 0))
    assert count == 2
    rows = sums[model.model.embedding.weight]
    assert (rows[3] == 0).all() and (rows[0] != 0).any()


def test_labels_follow_the_models_probabilities_in_any_chunk():
    hidden, weight = torch.tensor([[1.0, 0.5]]).expand(20_000, 2), torch.randn(6, 2)
    drawn = sample_labels(hidden, weight, curvature_generator(0, 0))
    shares = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(shares, F.linear(hidden[0], weight).softmax(-1), rtol=0, atol=0.015)
    assert torch.equal(drawn, sample_labels(hidden, weight, curvature_generator(0, 0), chunk=999))


def test_curvature_is_estimated_every_tenth_step_from_the_first():
    optimizer = Sophia([nn.Parameter(torch.zeros(1))])
    assert [step for step in range(25) if optimizer.due(step)] == [0, 10, 20]


def test_curvature_of_half_precision_weights_is_float32_and_survives_saving():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Sophia([p], lr=0.1)
    optimizer.update_curvature({p: torch.tensor([0.1, 0.2, 0.3])}, tokens=3)
    again = Sophia([p], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    expected = 0.01 * torch.tensor([0.1, 0.2, 0.3]).square() / 3
    torch.testing.assert_close(again.state[p]["curvature"], expected)
    assert torch.equal(again.state[p]["curvature"], optimizer.state[p]["curvature"])
