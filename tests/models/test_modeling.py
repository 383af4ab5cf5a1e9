"""What the models compute and return."""

import pytest
import torch

from ava_core.losses import CrossEntropy, UnifiedLoss, token_nll
from ava_core.models.attention import attend

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def backward(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, gradients(model)


@pytest.mark.parametrize("overrides", [{}, {"router": "confidence"}, {"num_shared_experts": 1, "qk_norm": False}])
@pytest.mark.parametrize("implementation", ["looped", "grouped_mm"])
def test_sparse_model_equals_dense_model_with_gradients(make_model, tokens, overrides, implementation):
    model = make_model(experts_implementation=implementation, **overrides)
    sparse, sparse_grads = backward(model, input_ids=tokens, labels=tokens)
    model.set_experts_implementation("dense")
    dense, dense_grads = backward(model, input_ids=tokens, labels=tokens)
    torch.testing.assert_close(sparse.logits, dense.logits, **CLOSE)
    for name, grad in sparse_grads.items():
        torch.testing.assert_close(grad, dense_grads[name], **CLOSE, msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_of_cpu_training_equals_the_fused_kernel(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 24, 16, generator=generator).bfloat16() for _ in range(3))
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril() if masked else None
    if masked:
        mask[1, :, 12:, :12] = False  # two documents in the second row
    fused = attend(q.float(), k.float(), v.float(), mask)
    explicit = attend(q.requires_grad_(), k, v, mask)
    torch.testing.assert_close(explicit.float(), fused, rtol=0.03, atol=0.03)


def test_loss_is_that_of_its_parts(model, tokens):
    out = model(tokens, labels=tokens)
    nll = token_nll(out.logits[:, :-1], tokens[:, 1:]).mean()
    torch.testing.assert_close(out.loss_parts["cross_entropy"], nll)
    expected = nll + 0.01 * out.loss_parts["balance_loss"] + 0.001 * out.loss_parts["router_z_loss"]
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.loss - nll, out.aux_loss, rtol=1e-3, atol=1e-6)


def test_loss_without_logits_is_the_same_loss(model, tokens):
    labels = tokens.clone()
    labels[0, :4] = -100
    plain, plain_grads = backward(model, input_ids=tokens, labels=labels)
    chunked, grads = backward(model, input_ids=tokens, labels=labels, return_logits=False)
    assert chunked.logits is None
    torch.testing.assert_close(chunked.loss, plain.loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain_grads[name], **CLOSE)


def test_shifted_labels_equal_labels_shifted_inside(model, tokens):
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(tokens, shift_labels=shifted).loss, model(tokens, labels=tokens).loss)


def test_loss_function_can_be_replaced(model, tokens):
    plain = model(tokens, labels=tokens).loss_parts["cross_entropy"]
    model.loss_function = UnifiedLoss([CrossEntropy(weight=2.0)], {"balance_loss": 0.0, "router_z_loss": 0.0})
    torch.testing.assert_close(model(tokens, labels=tokens).loss, 2 * plain)


def test_logits_to_keep_are_the_last(model, tokens):
    torch.testing.assert_close(model(tokens, logits_to_keep=1).logits, model(tokens).logits[:, -1:])
    assert torch.isfinite(model(tokens, labels=tokens, logits_to_keep=1).loss)


def test_router_outputs_are_per_layer_and_on_demand(model, tokens):
    assert model(tokens).router_logits is None
    out = model(tokens, output_router_logits=True)
    assert len(out.router_logits) == len(out.router_choices) == len(out.router_statistics) == 3
    choices, statistics = out.router_choices[1], out.router_statistics[1]
    assert choices.shape == (24, 8) and choices.dtype == torch.bool
    assert (choices.sum(-1) == 2).all()
    torch.testing.assert_close(choices.float().mean(0), statistics.load_E)
    torch.testing.assert_close(choices[:, :4].sum() / 24, statistics.ffn_experts_per_token)


@pytest.mark.parametrize("router", ["hierarchical", "expert_bias"])
def test_router_logits_are_of_experts_whatever_the_gate_holds(make_model, tokens, router):
    """The gate of groups and experts is wider; the softmax of what is returned is the experts' mean probability."""
    groups = {"num_expert_groups": 2, "num_groups_per_token": 2} if router == "hierarchical" else {}
    out = make_model(router=router, **groups)(tokens, output_router_logits=True)
    for logits, choices, statistics in zip(out.router_logits, out.router_choices, out.router_statistics, strict=True):
        assert logits.shape == choices.shape == (24, 8)
        torch.testing.assert_close(logits.softmax(-1).mean(0), statistics.mean_probability_E)


def test_configuration_can_ask_for_router_logits(make_model, tokens):
    model = make_model(output_router_logits=True)
    assert len(model(tokens).router_logits) == 3
    assert model(tokens, output_router_logits=False).router_logits is None


def test_tuples_hold_what_the_outputs_hold(model, tokens):
    out = model(tokens, labels=tokens, use_cache=False)
    as_tuple = model(tokens, labels=tokens, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out.loss) and torch.equal(as_tuple[1], out.logits)
    assert len(as_tuple) == len(out.to_tuple())
    hidden = model.model(tokens, return_dict=False)[0]
    assert torch.equal(hidden, model.model(tokens).last_hidden_state)


def test_ids_and_embeddings_exclude_each_other(model, tokens):
    embeds = model.get_input_embeddings()(tokens)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(tokens).logits)
    for inputs in ({}, {"input_ids": tokens, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**inputs)


def test_collapse_of_one_layer_shows_in_the_balance_loss(model, tokens):
    before = model(tokens).aux_loss
    with torch.no_grad():
        gate = model.model.layers[1].moe.gate
        gate.weight.zero_()
        gate.residual_weight.zero_()
        gate.weight[1] = 1.0
    out = model(tokens, output_router_logits=True)
    assert out.router_choices[1][:, 0].all() or out.router_choices[1][:, 1].any()
    assert out.aux_loss != before


def test_gating_residual_carries_raw_logits_between_layers(model, tokens):
    out = model(tokens, output_router_logits=True, output_hidden_states=True)
    layer = model.model.layers[1]
    x = out.hidden_states[1]
    rotary = model.model.rotary_emb(torch.arange(tokens.shape[1])[None])
    x = x + layer.self_attn(layer.input_layernorm(x), rotary)
    own = layer.post_attention_layernorm(x).reshape(-1, 32) @ layer.moe.gate.weight.T
    expected = own + out.router_logits[0] @ layer.moe.gate.residual_weight.T
    torch.testing.assert_close(out.router_logits[1], expected, **CLOSE)


def test_autocast_trains_with_float32_weights(make_model, tokens):
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens, labels=tokens, output_router_logits=True, return_logits=False)
    out.loss.backward()
    assert all(logits.dtype == torch.float32 for logits in out.router_logits)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all(), name


@pytest.mark.slow
def test_dense_model_exports_to_onnx(make_model, tokens, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids, use_cache=False).logits

    model = make_model(experts_implementation="dense", router="confidence")
    path = tmp_path / "model.onnx"
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=256)}}
    torch.onnx.export(Logits(model), (tokens,), path, dynamo=True, dynamic_shapes=dynamic)
    session = onnxruntime.InferenceSession(str(path))
    other = torch.randint(3, 61, (3, 9))
    (logits,) = session.run(None, {"input_ids": other.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(other).logits, **CLOSE)
