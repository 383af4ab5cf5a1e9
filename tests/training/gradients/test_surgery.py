"""PCGrad by hand on two numbers, and on a real model against two separate backward passes."""

import math

import pytest
import torch
from torch import nn

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.gradients.surgery import GradientSurgery


def by_hand(main, aux):
    """`.grad` and figures for a parameter of two entries with the gradients `main` and `aux`."""
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.zeros(2))
    holder.apart = nn.Parameter(torch.zeros(1))  # the auxiliary loss doesn't reach it
    surgery = GradientSurgery(holder)
    aux_loss = (torch.tensor(aux) * holder.weight).sum()
    loss = (torch.tensor(main) * holder.weight).sum() + 7 * holder.apart.sum() + aux_loss
    surgery.accumulate(aux_loss)
    loss.backward()
    figures = surgery.finish()
    assert holder.apart.grad.tolist() == [7.0]
    return holder.weight.grad.tolist(), figures["gradient_conflict"]


def test_conflicting_gradients_are_projected_off_each_other():
    # <g, a> = -2; g off a: (2, 0) + 2/2 (-1, 1) = (1, 1); a off g: (-1, 1) + 2/4 (2, 0) = (0, 1)
    grad, cosine = by_hand([2.0, 0.0], [-1.0, 1.0])
    assert grad == pytest.approx([1.0, 2.0])
    assert cosine == pytest.approx(-1 / math.sqrt(2))


def test_gradients_that_agree_are_added():
    grad, cosine = by_hand([2.0, 0.0], [1.0, 1.0])
    assert grad == [3.0, 1.0]
    assert cosine == pytest.approx(1 / math.sqrt(2))


def test_opposite_gradients_leave_nothing():
    grad, cosine = by_hand([2.0, 0.0], [-1.0, 0.0])
    assert grad == pytest.approx([0.0, 0.0], abs=1e-7)
    assert cosine == pytest.approx(-1)


def test_objective_without_gradient_changes_nothing():
    grad, cosine = by_hand([2.0, 1.0], [0.0, 0.0])
    assert (grad, cosine) == ([2.0, 1.0], 0.0)
    surgery = GradientSurgery(nn.Linear(1, 1))
    surgery.accumulate(torch.zeros(()))  # no weights, no graph
    assert surgery.finish() == {"gradient_conflict": 0.0}


def make_model(dtype=torch.float32, weight=0.5, checkpointing=False):
    torch.manual_seed(0)
    model = EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=31, hidden_size=16, num_layers=3, num_attention_heads=2, num_ffn_experts=2,
            expert_intermediate_size=8, balance_loss_weight=weight, router_z_loss_weight=weight,
        )
    )  # fmt: skip
    model.to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def micro_batches():
    return torch.randint(0, 31, (2, 2, 8), generator=torch.Generator().manual_seed(0))


def operate(model, aux_factor=1.0):
    """Two micro-batches through surgery; `aux_factor` changes what it is told, not the loss."""
    surgery = GradientSurgery(model)
    for tokens in micro_batches():
        output = model(tokens, labels=tokens, return_logits=False)
        surgery.accumulate(output.aux_loss * aux_factor, 0.5)
        (output.loss / 2).backward()
    return surgery.finish()["gradient_conflict"]


def backward_of(model, part):
    """Gradients of `part(output)` over the same micro-batches, by plain backward passes, by name."""
    model.zero_grad()
    for tokens in micro_batches():
        (part(model(tokens, labels=tokens, return_logits=False)) / 2).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_without_conflict_gets_exactly_the_plain_gradient(dtype, checkpointing):
    model = make_model(dtype, 1e-3, checkpointing)
    plain = backward_of(model, lambda output: output.loss)
    model.zero_grad()
    # Surgery is told of the auxiliary loss with the sign that agrees.
    if operate(model) < 0:
        model.zero_grad()
        assert operate(model, -1.0) > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is None if name not in plain else torch.equal(parameter.grad, plain[name]), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_model_with_conflict_gets_the_projected_sum_of_separate_gradients(checkpointing):
    model = make_model(checkpointing=checkpointing)
    total = backward_of(model, lambda output: output.loss)
    aux = backward_of(model, lambda output: output.aux_loss)
    assert 0 < len(aux) < len(total)  # the head's norm and the last layer's experts have none

    def gradients(sign):
        mains = {name: total[name].double() - sign * aux[name].double() for name in aux}
        auxes = {name: sign * aux[name].double() for name in aux}
        return mains, auxes, sum(float((mains[name] * auxes[name]).sum()) for name in aux)

    sign = next(sign for sign in (1.0, -1.0, -30.0) if gradients(sign)[2] < 0)
    mains, auxes, dot = gradients(sign)
    main_square, aux_square = (sum(float(g.square().sum()) for g in grads.values()) for grads in (mains, auxes))
    model.zero_grad()
    cosine = operate(model, sign)
    assert cosine == pytest.approx(dot / math.sqrt(main_square * aux_square), rel=1e-4)
    for name, parameter in model.named_parameters():
        if name not in aux:
            assert name not in total or torch.equal(parameter.grad, total[name])
            continue
        expected = mains[name] - dot / aux_square * auxes[name] + auxes[name] - dot / main_square * mains[name]
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_steps_do_not_leak_into_each_other():
    model = make_model()
    first = operate(model)
    model.zero_grad()
    assert operate(model) == first


def _two_ranks(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = make_model()
    surgery = GradientSurgery(model)
    tokens = micro_batches()[rank]
    output = model(tokens, labels=tokens, return_logits=False)
    surgery.accumulate(output.aux_loss * -30)
    output.loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:  # as the engine does
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= 2
    cosine = surgery.finish()["gradient_conflict"]
    torch.save((cosine, {n: p.grad for n, p in model.named_parameters()}), f"{results}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_operate_on_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(_two_ranks, (f"file://{tmp_path}/store", tmp_path), nprocs=2)
    model = make_model()
    cosine = operate(model, -30.0)
    assert cosine < 0
    for rank in range(2):
        theirs, grads = torch.load(tmp_path / str(rank))
        assert theirs == pytest.approx(cosine, rel=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-5, atol=1e-7)
