"""The mixture layer under every router: sparse against dense, recomputation, vanilla MoE as a special case."""

import pytest
import torch

from ava_core import kernels
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.moe import MoELayer
from ava_core.models.routing import ROUTERS

ALL = pytest.mark.parametrize("name", ROUTERS)
FIELDS = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "expert_intermediate_size": 16, "num_ffn_experts": 4}


def config(name, **overrides):
    groups = {"num_expert_groups": 4, "num_groups_per_token": 2} if name == "hierarchical" else {}
    return EnhancedMoEConfig(**{**FIELDS, "router": name, **groups, **overrides})


def randomise(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.train()


@ALL
@pytest.mark.parametrize("gamma", [None, 0.7])
def test_sparse_and_dense_evaluation_agree_in_values_and_gradients(name, gamma):
    results = []
    for implementation in ("looped", "grouped_mm", "dense"):
        layer = randomise(MoELayer(config(name, capacity_factor=gamma, experts_implementation=implementation), 1))
        x = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        previous = torch.randn(30, layer.gate.weight.shape[0], generator=torch.Generator().manual_seed(2))
        out, logits, routing = layer(x, previous)
        assert logits.shape == previous.shape
        (out.square().sum() + routing.balance_loss + routing.z_loss).backward()
        results.append((out, x.grad, layer.gate.weight.grad, layer.gate.residual_weight.grad))
    for sparse in results[:2]:
        for found, expected in zip(sparse, results[2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@ALL
def test_reference_layer_has_the_gradients_of_finite_differences(name):
    small = {"hidden_size": 4, "num_attention_heads": 1, "expert_intermediate_size": 3, "num_shared_experts": 1}
    fields = {"experts_implementation": "dense", "capacity_factor": 0.9, **small}
    layer = randomise(MoELayer(config(name, **fields), 1)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    previous = torch.randn(4, layer.gate.weight.shape[0], generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: layer(*inputs)[:2], (x, previous))


@ALL
def test_recomputation_gives_the_same_gradients_and_statistics(name):
    results = []
    tokens = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(1))
    for recompute in (False, True):
        torch.manual_seed(0)
        built = EnhancedMoEForCausalLM(config(name, capacity_factor=0.8, router_jitter=0.1)).train()
        if recompute:
            built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        output = built(tokens, labels=tokens)
        output.loss.backward()
        results.append((output, {key: value.grad for key, value in built.named_parameters()}))
    (plain, plain_grads), (recomputed, recomputed_grads) = results
    assert all(torch.equal(plain_grads[key], recomputed_grads[key]) for key in plain_grads)
    for first, second in zip(plain.router_statistics, recomputed.router_statistics, strict=True):
        assert torch.equal(first.load_E, second.load_E)


@ALL
def test_router_logits_of_the_model_give_its_gate_values(name):
    built = randomise(EnhancedMoEForCausalLM(config(name))).eval()
    tokens = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    output = built(tokens, output_router_logits=True)
    for logits_TE, choices_TE, statistics in zip(
        output.router_logits, output.router_choices, output.router_statistics, strict=True
    ):
        assert logits_TE.shape == choices_TE.shape == (18, 8)
        torch.testing.assert_close(logits_TE.softmax(-1).mean(0), statistics.mean_probability_E)
        torch.testing.assert_close(choices_TE.float().mean(0), statistics.load_E)


@pytest.mark.skipif(kernels.library.loaded() is None, reason="no native kernels here")
@pytest.mark.parametrize(
    "absent", [(), ("num_constant_experts",), ("num_copy_experts", "num_constant_experts"), ("num_copy_experts",)]
)
def test_layer_in_bfloat16_is_the_same_with_kernels_and_in_plain_torch(absent, monkeypatch):
    results = []
    for native in (True, False):
        monkeypatch.setenv("AVA_KERNELS", "native" if native else "off")
        layer = randomise(MoELayer(config("top_k", **dict.fromkeys(absent, 0)), 1)).to(torch.bfloat16)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 20, 32, generator=generator).bfloat16().requires_grad_()
        previous = torch.randn(40, layer.gate.weight.shape[0], generator=generator)
        out, logits, routing = layer(x, previous)
        torch.autograd.backward([out.float().square().sum(), routing.balance_loss])
        assert out.dtype == torch.bfloat16 and logits.dtype == torch.float32
        results.append((out, logits, x.grad, *(parameter.grad for parameter in layer.parameters())))
    for found, expected in zip(*results, strict=True):
        if expected is None or found is None:
            assert found is expected
        else:
            assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def test_tau_of_one_without_zero_computation_experts_is_vanilla_moe():
    """Softmax, top-k, weighted sum of SwiGLU experts: Mixtral's layer before its renormalisation."""
    none = {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "gating_residuals": False}
    layer = randomise(MoELayer(config("top_k", tau=1.0, experts_implementation="looped", **none), 0))
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(1))
    out, _, _ = layer(x)
    probabilities = (x[0] @ layer.gate.weight.T).softmax(-1)
    weights, ids = probabilities.topk(2)
    for t in range(20):
        expected = torch.zeros(32)
        for weight, e in zip(weights[t], ids[t].tolist(), strict=True):
            gate, up = (layer.experts.gate_up_proj[e] @ x[0, t]).chunk(2)
            expected += weight * (layer.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(out[0, t], expected, rtol=1e-4, atol=1e-4)
