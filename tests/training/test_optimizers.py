import copy
import io

import pytest
import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.optimizers import OPTIMIZERS, Muon, build_optimizer, exact_state_dict, orthogonalize


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
    optimizer = build_optimizer(model, name, 0.01, 0.1)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_constants_are_not_decayed(name):
    model = make_model()
    optimizer = build_optimizer(model, name, 0.01, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert not any("norm" in n or n.endswith(("constants", "residual_weight")) for n in decayed)
    assert "model.layers.0.moe.experts.gate_up_proj" in decayed
    assert "model.embed_tokens.weight" in decayed


def test_muon_updates_hidden_matrices_and_nothing_else():
    model = make_model()
    optimizer = build_optimizer(model, "muon", 0.01)
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
    optimizer = build_optimizer(model, name, 0.02)
    tokens = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(0))
    before = model(tokens, labels=tokens).loss.item()
    for _ in range(25):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    assert model(tokens, labels=tokens).loss.item() < 0.6 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_through_state_dict_is_bit_exact(name):
    model = make_model()
    optimizer = build_optimizer(model, name, 0.01, 0.1)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 3, start=3)

    file.seek(0)
    saved = torch.load(file)
    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    again = build_optimizer(resumed, name, 0.01, 0.1)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, 3, start=3)
    for (key, a), b in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_parameters_without_a_gradient_are_left_alone():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    build_optimizer(model, "muon", 0.1, 0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sgd", 0.1, 0.0), "optimizer = 'sgd'"),
        (("muon", 0.0, 0.0), "learning_rate"),
        (("adamw", 0.1, -1.0), "weight_decay"),
    ],
)
def test_refusal_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(make_model(), *arguments)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_too_small_for_bfloat16_are_not_lost(name):
    weights = torch.nn.ParameterDict({"layers_q_proj": torch.nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))})
    optimizer = build_optimizer(weights, name, 1e-4)
    before = weights["layers_q_proj"].detach().clone()
    for _ in range(500):
        weights["layers_q_proj"].grad = torch.ones(4, 8, dtype=torch.bfloat16)
        optimizer.step()
    (master,) = exact_state_dict(weights, optimizer).values()
    assert master.dtype == torch.float32
    assert (master < before.float() - 1e-3).all()
    assert torch.equal(weights["layers_q_proj"], master.bfloat16())
    assert not torch.equal(weights["layers_q_proj"], before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masters_survive_saving_and_loading_to_the_bit(name, tmp_path):
    def steps(model, optimizer, count):
        for _ in range(count):
            for p in model.parameters():
                p.grad = torch.sin(p.detach().float() * 100).bfloat16()
            optimizer.step()

    def build():
        torch.manual_seed(0)
        model = torch.nn.ParameterDict(
            {n: torch.nn.Parameter(torch.randn(6, 4).bfloat16()) for n in ("q_proj", "norm")}
        )
        return model, build_optimizer(model, name, 1e-3, weight_decay=0.1)

    whole, optimizer = build()
    steps(whole, optimizer, 6)
    half, first = build()
    steps(half, first, 3)
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed, second = build()
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    steps(resumed, second, 3)
    exact, expected = exact_state_dict(resumed, second), exact_state_dict(whole, optimizer)
    for key, value in expected.items():
        assert value.dtype == torch.float32
        assert torch.equal(exact[key], value), key


def test_tied_weights_share_one_master():
    embedding, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head}).bfloat16()
    head.weight = embedding.weight
    optimizer = build_optimizer(model, "adamw", 1e-3)
    state = exact_state_dict(model, optimizer)
    assert state["embedding.weight"] is state["head.weight"]
    assert state["embedding.weight"].dtype == torch.float32
