"""A loss that is no number says where in the model that begins."""

import math

import pytest
import torch

from ava_core.models.diagnosis import NonFiniteError, first_non_finite


@pytest.fixture(params=["looped", "dense"])
def any_model(request, make_model):
    return make_model(experts_implementation=request.param)


def spoil(weight, value=math.nan):
    with torch.no_grad():
        weight.view(-1)[0] = value


def test_healthy_model_has_no_finding(any_model, tokens):
    assert first_non_finite(any_model, input_ids=tokens, labels=tokens) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.embed_tokens.weight", "embed_tokens.weight"),
        ("model.layers.1.self_attn.k_proj.weight", "layers.1.self_attn.k_proj.weight"),
        ("model.layers.2.moe.experts.down_proj", "layers.2.moe.experts.down_proj"),
        ("model.layers.2.moe.gate.residual_weight", "layers.2.moe.gate.residual_weight"),
        ("model.norm.weight", "norm.weight"),
    ],
)
def test_weight_that_is_no_number_is_named(make_model, tokens, path, name):
    model = make_model()
    spoil(model.get_parameter(path))
    assert first_non_finite(model, input_ids=tokens) == f"{name}: the weight itself holds nan"


def test_of_several_spoilt_weights_the_first_is_named_and_the_others_counted(make_model, tokens):
    model = make_model()
    for layer in model.model.layers:
        spoil(layer.moe.experts.gate_up_proj, -math.inf)
    expected = "layers.0.moe.experts.gate_up_proj: the weight itself holds inf, and 2 more weights hold such values"
    assert first_non_finite(model, input_ids=tokens) == expected


def test_embeddings_that_are_no_numbers_are_named(make_model, tokens):
    model = make_model()
    embeds = model.get_input_embeddings()(tokens).detach()
    embeds[1, 3, 5] = math.nan
    assert first_non_finite(model, inputs_embeds=embeds) == "inputs_embeds: the input itself holds nan"
    with pytest.raises(NonFiniteError, match=r"^loss is nan: inputs_embeds: the input itself holds nan$"):
        model(inputs_embeds=embeds, labels=tokens)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_overflow_in_the_experts_of_a_layer_is_found_there(any_model, tokens, layer):
    """Finite weights whose products leave the range of float16; later layers only pass the infinity on."""
    model = any_model.half()
    experts = model.model.layers[layer].moe.experts
    with torch.no_grad():
        experts.gate_up_proj.fill_(200.0).mul_(torch.sign(torch.randn_like(experts.gate_up_proj)))
    finding = first_non_finite(model, input_ids=tokens)
    assert finding.startswith(f"layers.{layer}.moe.experts: output is ")
    assert finding.endswith(" though its input is finite")


def test_overflow_in_attention_is_found_in_its_projection(make_model, tokens):
    model = make_model().half()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.fill_(6e4)
        model.model.layers[1].self_attn.o_proj.weight.fill_(6e4)
    assert first_non_finite(model, input_ids=tokens).startswith("layers.1.self_attn.")


def test_overflow_of_the_residual_sum_is_found_in_its_layer(make_model):
    """Every block's output is finite; the sums of both layers leave the range of float16 in the second."""
    model = make_model(num_layers=2, num_zero_experts=0, num_copy_experts=0, num_constant_experts=0).half()
    for layer in model.model.layers:
        layer.moe.register_forward_hook(lambda _module, _inputs, output: (output[0] * 0 + 4e4, *output[1:]))
    finding = first_non_finite(model, input_ids=torch.tensor([[5, 6, 7]]))
    assert finding == "layers.1: output is inf though its input is finite"


def test_router_loss_that_overflows_is_found_in_its_router(make_model, tokens):
    model = make_model(gating_residuals=False)
    with torch.no_grad():
        model.model.layers[1].moe.gate.weight.mul_(1e25)
    assert first_non_finite(model, input_ids=tokens) == "layers.1.moe.router: z_loss is inf though its input is finite"


@pytest.mark.parametrize("training", [True, False])
def test_loss_on_a_cpu_names_the_layer_in_training_and_evaluation(any_model, tokens, training):
    spoil(any_model.model.layers[1].moe.experts.down_proj)
    any_model.train(training)
    expected = r"^loss is nan: layers.1.moe.experts.down_proj: the weight itself holds nan$"
    with torch.set_grad_enabled(training):
        for options in ({}, {"return_logits": False}):
            with pytest.raises(NonFiniteError, match=expected):
                any_model(tokens, labels=tokens, **options)


def test_overflow_under_autocast_is_found_under_the_same_autocast(make_model, tokens):
    """In float32 the same pass is finite, so a diagnosis without autocast would find nothing."""
    model = make_model()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.mul_(1e6)
    assert torch.isfinite(model(tokens, labels=tokens).loss)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(NonFiniteError, match=r"^loss is nan: layers.2.self_attn.o_proj: output is (inf|nan) though"),
    ):
        model(tokens, labels=tokens)


def test_loss_scaler_may_take_the_loss_as_it_is(make_model, tokens):
    model = make_model()
    spoil(model.model.embed_tokens.weight)
    model.raise_non_finite = False
    assert model(tokens, labels=tokens).loss.isnan()


def test_diagnosis_leaves_no_trace(make_model, tokens):
    model = make_model(dropout=0.3).train()
    spoil(model.model.layers[0].moe.experts.down_proj)
    state = torch.get_rng_state()
    for _ in range(2):
        first_non_finite(model, input_ids=tokens)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    assert model.raise_non_finite and model.training


def test_divisor_of_zero_is_no_fault_of_a_layer(make_model, tokens):
    with pytest.raises(NonFiniteError, match=r"^loss is inf: the model: loss is inf though its input is finite"):
        make_model()(tokens, labels=tokens, num_items_in_batch=0)
