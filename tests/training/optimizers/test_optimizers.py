import copy
import io
from typing import get_args

import pytest
import torch

from ava_core.config.optimizers import OPTIMIZERS, OptimizerName
from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.runtime.code import code_of
from ava_core.steps.table import STEPS
from ava_core.training.checkpoints.reading import read_tensors
from ava_core.training.optimizers import (
    AdamW,
    Muon,
    OnMasters,
    build_optimizer,
    exact_state_dict,
    is_decayed,
    measured_weights,
    orthogonalize,
)

RATES = {
    "adamw": 0.02, "muon": 0.02, "lion": 0.005, "adafactor": 0.1, "sophia": 0.01, "adamw_8bit": 0.02,
    "adamw_schedule_free": 0.03,
}  # fmt: skip
"""At which the tiny model learns."""


def build(model, name, rate=0.01, decay=0.0, *, masters=True, **settings):
    rates = {"learning_rate": rate, "adam_learning_rate": rate, "weight_decay": decay, "schedule": "constant"}
    return build_optimizer(model, TrainConfig(optimizer=name, **{**rates, **settings}), masters=masters)


def make_model():
    torch.manual_seed(0)
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=31, hidden_size=16, num_layers=2, num_attention_heads=2, num_ffn_experts=2,
            expert_intermediate_size=8, num_shared_experts=1,
        )
    )  # fmt: skip


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        tokens = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8), (3, 8, 20)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix, steps=8, dtype=torch.float32))
    assert values.min() > 0.6 and values.max() < 1.3


def test_orthogonalizing_a_stack_is_orthogonalizing_each():
    stack = torch.randn(3, 6, 10)
    each = torch.stack([orthogonalize(m, dtype=torch.float32) for m in stack])
    torch.testing.assert_close(orthogonalize(stack, dtype=torch.float32), each, rtol=1e-4, atol=1e-5)


def test_a_zero_gradient_stays_finite():
    assert torch.isfinite(orthogonalize(torch.zeros(2, 4, 4))).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group(name):
    model = make_model()
    optimizer = build(model, name, 0.01, 0.1)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_constants_are_not_decayed(name):
    model = make_model()
    optimizer = build(model, name, 0.01, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert not any("norm" in n or n.endswith(("constants", "residual_weight")) for n in decayed)
    assert "model.layers.0.moe.experts.gate_up_proj" in decayed
    assert "model.embed_tokens.weight" in decayed


def test_muon_updates_hidden_matrices_and_nothing_else():
    model = make_model()
    optimizer = build(model, "muon")
    names = {id(p): n for n, p in model.named_parameters()}
    muon = {names[id(p)] for g in optimizer.param_groups if g["algorithm"] == "muon" for p in g["params"]}
    prefix = "model.layers.1."
    assert {n.removeprefix(prefix) for n in muon if n.startswith(prefix)} == {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "moe.experts.gate_up_proj", "moe.experts.down_proj",
        "moe.shared_experts.gate_up_proj.weight", "moe.shared_experts.down_proj.weight",
    }  # fmt: skip
    assert all(n.startswith("model.layers.") for n in muon)


def test_muon_first_step_by_hand():
    p = torch.nn.Parameter(torch.randn(6, 4))
    start, p.grad = p.detach().clone(), torch.randn(6, 4)
    Muon([{"params": [p], "algorithm": "muon"}], lr=0.1, weight_decay=0.5, momentum=0.9).step()
    # Orthogonalisation is blind to scale: Nesterov's first update is a multiple of the gradient.
    expected = start * (1 - 0.05) - 0.1 * 0.2 * 6**0.5 * orthogonalize(p.grad)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-2, atol=1e-3)


def test_stacks_of_experts_take_turns_with_larger_steps_and_matrices_go_on():
    torch.manual_seed(0)
    matrix, first, second = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (3, 4, 6), (3, 6, 4)))
    group = {"params": [matrix, first, second], "algorithm": "muon", "lr": 0.1, "weight_decay": 0.5}
    optimizer = Muon([group], momentum=0.0, expert_interval=2)
    moved = []
    for _ in range(4):
        before = [p.detach().clone() for p in (matrix, first, second)]
        for p in (matrix, first, second):
            p.grad = torch.randn_like(p)
        optimizer.step()
        moved.append([not torch.equal(p, old) for p, old in zip((matrix, first, second), before, strict=True)])
        if moved[-1][1]:  # twice the rate, for the update and for the decay
            expected = before[1] * (1 - 0.2 * 0.5) - 0.2 * 0.2 * 6**0.5 * orthogonalize(first.grad)
            torch.testing.assert_close(first.detach(), expected)
    assert all(matrix_moved for matrix_moved, _, _ in moved)
    assert [first_moved for _, first_moved, _ in moved] == [not second_moved for _, _, second_moved in moved]
    assert sum(first_moved for _, first_moved, _ in moved) == 2


def test_momentum_of_a_stack_takes_in_the_gradients_between_its_updates():
    stack = torch.nn.Parameter(torch.zeros(2, 4, 4))
    optimizer = Muon([{"params": [stack], "algorithm": "muon", "lr": 0.1}], momentum=0.5, expert_interval=3)
    for _ in range(2):
        stack.grad = torch.ones_like(stack)
        optimizer.step()
    torch.testing.assert_close(optimizer.state[stack]["momentum"], torch.full((2, 4, 4), 0.75))


def test_adamw_part_of_muon_is_pytorchs_adamw():
    ours, theirs = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    a = Muon([{"params": [ours]}], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    b = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    for seed in range(4):
        ours.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_falls(name):
    model = make_model()
    optimizer = build(model, name, RATES[name])
    tokens = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model(tokens, labels=tokens).loss.item()
    for _ in range(12):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    assert model(tokens, labels=tokens).loss.item() < 0.8 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_through_state_dict_is_bit_exact(name):
    model = make_model()
    optimizer = build(model, name, 0.01, 0.1)
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 2, start=2)

    file.seek(0)
    saved = torch.load(file)
    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    again = build(resumed, name, 0.01, 0.1)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, 2, start=2)
    for (key, a), b in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_parameters_without_a_gradient_are_left_alone():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    build(model, "muon", 0.1, 0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_too_small_for_bfloat16_are_not_lost(name):
    weights = torch.nn.ParameterDict({"layers_q_proj": torch.nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))})
    optimizer = build(weights, name, 1e-4)
    before = weights["layers_q_proj"].detach().clone()
    for _ in range(500):
        weights["layers_q_proj"].grad = torch.ones(4, 8, dtype=torch.bfloat16)
        optimizer.step()
    (master,) = exact_state_dict(weights, optimizer).values()
    assert master.dtype == torch.float32
    assert (master < before.float() - 1e-3).all()
    with measured_weights(optimizer):
        assert torch.equal(weights["layers_q_proj"], master.bfloat16())
    assert not torch.equal(weights["layers_q_proj"], before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masters_survive_saving_and_loading_to_the_bit(name, tmp_path):
    def steps(model, optimizer, count):
        for _ in range(count):
            for p in model.parameters():
                p.grad = torch.sin(p.detach().float() * 100).bfloat16()
            optimizer.step()

    def start():
        torch.manual_seed(0)
        model = torch.nn.ParameterDict(
            {n: torch.nn.Parameter(torch.randn(6, 4).bfloat16()) for n in ("q_proj", "norm")}
        )
        return model, build(model, name, 1e-3, decay=0.1)

    whole, optimizer = start()
    steps(whole, optimizer, 6)
    half, first = start()
    steps(half, first, 3)
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed, second = start()
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    steps(resumed, second, 3)
    exact, expected = exact_state_dict(resumed, second), exact_state_dict(whole, optimizer)
    for key, value in expected.items():
        assert value.dtype == torch.float32
        assert torch.equal(exact[key], value), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tied_weights_are_one_parameter_with_one_master(name):
    embedding, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head}).bfloat16()
    head.weight = embedding.weight
    optimizer = build(model, name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
    state = exact_state_dict(model, optimizer)
    assert state["embedding.weight"] is state["head.weight"]
    assert state["embedding.weight"].dtype == torch.float32


def test_every_optimizer_that_is_allowed_is_described():
    assert get_args(OptimizerName) == tuple(OPTIMIZERS)


def test_every_optimizer_is_among_the_code_that_can_change_a_training():
    code = code_of(STEPS["train"]).files
    assert {f"ava_core.training.optimizers.{name}" for name in OPTIMIZERS} <= code.keys()


def two_gradients():
    return [torch.tensor([[0.5, -2.0, 0.1], [1.0, -0.3, 4.0]]), torch.tensor([[-1.0, -2.0, 0.2], [0.9, 0.1, -0.5]])]


def two_steps(name, rate, decay):
    """The weights of a 2 x 3 matrix after each of two steps."""
    model = torch.nn.ParameterDict({"matrix": torch.nn.Parameter(torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, -2.0]]))})
    optimizer = build(model, name, rate, decay)
    after = []
    for grad in two_gradients():
        model["matrix"].grad = grad.clone()
        optimizer.step()
        after.append(model["matrix"].detach().clone())
    return after


def test_two_steps_of_lion_by_hand():
    # arXiv 2302.06675, algorithm 2, betas 0.9 and 0.99.
    weight, average, expected = torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, -2.0]]), torch.zeros(2, 3), []
    for grad in two_gradients():
        update = (0.9 * average + 0.1 * grad).sign() + 0.1 * weight
        weight = weight - 0.01 * update
        average = 0.99 * average + 0.01 * grad
        expected.append(weight)
    for ours, theirs in zip(two_steps("lion", 0.01, 0.1), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_steps_of_adafactor_by_hand():
    # arXiv 1804.04235, algorithms 4 and 5: d = 1, relative step at most the rate; decoupled weight decay.
    weight, row, column, expected = torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, -2.0]]), 0.0, 0.0, []
    for step, grad in enumerate(two_gradients(), 1):
        beta = 1 - step**-0.8
        row = beta * row + (1 - beta) * grad.square().mean(dim=1, keepdim=True)
        column = beta * column + (1 - beta) * grad.square().mean(dim=0, keepdim=True)
        update = grad / (row @ column / row.mean()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        size = max(1e-3, weight.square().mean().sqrt().item()) * min(0.01, step**-0.5)
        weight = weight * (1 - 0.01 * 0.1) - size * update
        expected.append(weight)
    for ours, theirs in zip(two_steps("adafactor", 0.01, 0.1), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_on_masters_is_the_library_itself_for_float32_weights(name):
    ours, theirs = make_model(), make_model()
    train(ours, build(ours, name, decay=0.1), 3)
    train(theirs, build(theirs, name, decay=0.1, masters=False), 3)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", [name for name, traits in OPTIMIZERS.items() if traits.needs_whole is None])
def test_without_masters_there_is_no_wrapper(name):
    assert not isinstance(build(make_model(), name, masters=False), OnMasters)


def test_on_masters_follows_the_rate_and_the_decay_of_its_groups():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = OnMasters(torch.optim.SGD([p], lr=0.5))
    optimizer.param_groups[0].update(lr=0.25, weight_decay=0.5)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.master(p).tolist() == [1 - 0.25 * 1.5] * 4
    assert p.tolist() == [0.625] * 4


def test_on_masters_leaves_parameters_without_a_gradient_alone():
    a, b = (torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = OnMasters(torch.optim.Adafactor([{"params": [a]}, {"params": [b]}], lr=0.1))
    a.grad = torch.ones_like(a)
    optimizer.step()
    assert (a < 1).all() and (b == 1).all()
    assert b not in optimizer.state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_the_optimizer_holds_of_half_precision_is_float32(name):
    model = make_model().bfloat16()
    optimizer = build(model, name)
    train(model, optimizer, 2)
    tensors = [v for state in optimizer.state_dict()["state"].values() for v in state.values() if torch.is_tensor(v)]
    assert len(tensors) > len(list(model.parameters()))
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loading_copies_the_state(name):
    model = make_model()
    optimizer = build(model, name)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    again = build(model, name)
    again.load_state_dict(saved)
    before = copy.deepcopy(saved["state"])
    train(model, again, 1, start=1)
    for i, values in before.items():
        for key, value in values.items():
            assert not torch.is_tensor(value) or torch.equal(saved["state"][i][key], value), key


def test_groups_have_the_rates_and_decays_of_the_configuration():
    model = make_model()
    ratios = {"embedding_learning_rate_ratio": 0.5, "router_learning_rate_ratio": 2.0}
    config = TrainConfig(optimizer="muon", learning_rate=0.02, adam_learning_rate=0.004, weight_decay=0.1, **ratios)
    optimizer = build_optimizer(model, config)
    names = {id(p): n for n, p in model.named_parameters()}
    rows = {
        names[id(p)]: (g["algorithm"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    layer = "model.layers.1."
    assert rows["model.embed_tokens.weight"] == ("adamw", 0.002, 0.1)
    assert rows["model.norm.weight"] == ("adamw", 0.004, 0.0)
    assert rows[layer + "self_attn.q_proj.weight"] == ("muon", 0.02, 0.1)
    assert rows[layer + "moe.experts.gate_up_proj"] == ("muon", 0.02, 0.1)
    assert rows[layer + "moe.gate.weight"] == ("adamw", 0.008, 0.1)
    assert rows[layer + "moe.gate.residual_weight"] == ("adamw", 0.008, 0.0)
    assert rows[layer + "moe.zero_computation.constants"] == ("adamw", 0.004, 0.0)
    assert len(optimizer.param_groups) == len(set(rows.values()))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])
def test_only_muon_uses_the_second_rate(name):
    optimizer = build(make_model(), name, 0.01, adam_learning_rate=0.5, embedding_learning_rate_ratio=3.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.03}


def test_an_untied_head_has_the_rate_of_the_embedding():
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(4, 5, bias=False)})
    (group,) = build(model, "adamw", 0.01, embedding_learning_rate_ratio=3.0).param_groups
    assert group["lr"] == 0.03


def test_matrices_of_prediction_heads_are_muons():
    head = torch.nn.ModuleDict({"projection": torch.nn.Linear(4, 4), "norm": torch.nn.RMSNorm(4)})
    optimizer = build(torch.nn.ModuleDict({"prediction_heads": torch.nn.ModuleList([head])}), "muon")
    shapes = {g["algorithm"]: {tuple(p.shape) for p in g["params"]} for g in optimizer.param_groups}
    assert shapes == {"muon": {(4, 4)}, "adamw": {(4,)}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_left_out(name):
    model = make_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    held = {id(p) for group in build(model, name).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_biases_are_not_decayed():
    assert not is_decayed("gate.bias", torch.nn.Parameter(torch.zeros(4)))


def test_adamw_of_half_precision_weights_is_pytorchs_adamw_on_float32_ones():
    p, q = torch.nn.Parameter(torch.ones(5).half()), torch.nn.Parameter(torch.ones(5))
    ours = AdamW([p], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    theirs = torch.optim.AdamW([q], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    for seed in range(3):
        p.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed)).half()
        q.grad = p.grad.float()
        ours.step()
        theirs.step()
    torch.testing.assert_close(ours.master(p), q.detach())


def large_parameter(dtype=torch.float32):
    """Of so many entries that bitsandbytes keeps its moments in 8 bits."""
    torch.manual_seed(0)
    return torch.nn.ParameterDict({"q_proj": torch.nn.Parameter(torch.randn(64, 96).to(dtype))})


def noisy_steps(model, optimizer, first, last):
    for step in range(first, last):
        noise = torch.randn(64, 96, generator=torch.Generator().manual_seed(step))
        model["q_proj"].grad = (model["q_proj"].detach().float() + 0.1 * noise).to(model["q_proj"].dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_in_eight_bits_resume_to_the_bit_from_plain_tensors(dtype, tmp_path):
    whole = large_parameter(dtype)
    optimizer = build(whole, "adamw_8bit", decay=0.1)
    noisy_steps(whole, optimizer, 0, 3)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "half.pt")
    noisy_steps(whole, optimizer, 3, 6)
    saved = read_tensors(tmp_path / "half.pt")
    (state,) = saved["optimizer"]["state"].values()
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    resumed = large_parameter(dtype)
    resumed.load_state_dict(saved["model"])
    again = build(resumed, "adamw_8bit", decay=0.1)
    again.load_state_dict(saved["optimizer"])
    noisy_steps(resumed, again, 3, 6)
    assert torch.equal(resumed["q_proj"], whole["q_proj"])
    for name, value in exact_state_dict(whole, optimizer).items():
        assert torch.equal(exact_state_dict(resumed, again)[name], value)


def test_eight_bits_follow_adamw_closely():
    exact, coarse = large_parameter(), large_parameter()
    start = exact["q_proj"].detach().clone()
    noisy_steps(exact, build(exact, "adamw"), 0, 20)
    noisy_steps(coarse, build(coarse, "adamw_8bit"), 0, 20)
    moved, apart = (exact["q_proj"] - start).norm(), (exact["q_proj"] - coarse["q_proj"]).norm()
    assert 0 < apart < 0.05 * moved


def schedule_free(dtype, beta=0.9):
    model = large_parameter(dtype)
    return model, build(model, "adamw_schedule_free", 0.02, decay=0.1, adam_beta1=beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedule_free_measures_and_exports_the_mean_of_z(dtype):
    # arXiv 2405.15682, eq. 10 at a constant rate: x is the mean of all z, the first one after a step.
    model, optimizer = schedule_free(dtype)
    zs = []
    for step in range(7):
        noisy_steps(model, optimizer, step, step + 1)
        (state,) = optimizer.state.values()
        zs.append(state["z"].clone())
    mean = torch.stack(zs).double().mean(dim=0).float()
    torch.testing.assert_close(exact_state_dict(model, optimizer)["q_proj"], mean, rtol=1e-4, atol=1e-5)
    before = model["q_proj"].detach().clone()
    with measured_weights(optimizer):
        torch.testing.assert_close(model["q_proj"].detach(), mean.to(dtype), rtol=1e-2, atol=1e-4)
        assert not torch.equal(model["q_proj"], before)
    assert torch.equal(model["q_proj"], before)


def test_schedule_free_is_the_packages_own_in_its_evaluation_mode():
    from schedulefree import AdamWScheduleFree

    ours, optimizer = schedule_free(torch.float32)
    theirs = large_parameter()
    reference = AdamWScheduleFree(theirs.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    reference.train()
    noisy_steps(ours, optimizer, 0, 5)
    noisy_steps(theirs, reference, 0, 5)
    assert torch.equal(ours["q_proj"], theirs["q_proj"])
    reference.eval()
    assert torch.equal(exact_state_dict(ours, optimizer)["q_proj"], theirs["q_proj"])


def test_measuring_changes_no_later_step():
    (looked, one), (alone, two) = schedule_free(torch.bfloat16), schedule_free(torch.bfloat16)
    for step in range(4):
        noisy_steps(looked, one, step, step + 1)
        noisy_steps(alone, two, step, step + 1)
        with measured_weights(one):
            pass
    assert torch.equal(one.master(looked["q_proj"]), two.master(alone["q_proj"]))


@pytest.mark.parametrize("name", [name for name, traits in OPTIMIZERS.items() if not traits.averages])
def test_the_others_measure_what_they_train(name):
    model = make_model().bfloat16()
    optimizer = build(model, name)
    train(model, optimizer, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with measured_weights(optimizer):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
