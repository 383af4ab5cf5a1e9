import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from ava_core.losses import CrossEntropy, UnifiedLoss, token_nll
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, EnhancedMoEModel
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


def test_one_token_at_a_time_equals_all_at_once(model, tokens):
    whole = model(tokens).logits
    cache, steps = DynamicCache(config=model.config), []
    for position in range(tokens.shape[1]):
        out = model(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **CLOSE)


def test_prompt_then_rest_with_a_cache_equals_all_at_once(model, tokens):
    first = model(tokens[:, :5], use_cache=True)
    rest = model(tokens[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), model(tokens).logits, **CLOSE)


def test_no_position_sees_the_future(model, tokens):
    changed = tokens.clone()
    changed[:, 7:] = 5
    torch.testing.assert_close(model(changed).logits[:, :7], model(tokens).logits[:, :7], **CLOSE)


def test_left_padding_changes_nothing(model, tokens):
    padding = torch.full((2, 4), model.config.pad_token_id)
    mask = torch.cat((torch.zeros_like(padding), torch.ones_like(tokens)), 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = model(torch.cat((padding, tokens), 1), attention_mask=mask, position_ids=positions)
    plain = model(tokens)
    torch.testing.assert_close(padded.logits[:, 4:], plain.logits, **CLOSE)
    torch.testing.assert_close(padded.aux_loss, plain.aux_loss, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.7, "top_k": 5}, {"num_beams": 2, "do_sample": True}],
)
def test_generation_with_and_without_a_cache_agree(model, tokens, options):
    common = {"max_new_tokens": 8, "min_new_tokens": 8, **options}
    torch.manual_seed(3)
    cached = model.generate(tokens, use_cache=True, **common)
    torch.manual_seed(3)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **common))
    assert cached.shape == (2, 20)


def test_generation_with_left_padding_equals_generation_without(model, tokens):
    short = tokens[1:, :7]
    alone = model.generate(short, max_new_tokens=6, min_new_tokens=6)[0, 7:]
    padding = torch.full((1, 5), model.config.pad_token_id)
    batch = torch.cat((tokens[:1], torch.cat((padding, short), 1)))
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    together = model.generate(batch, attention_mask=mask, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(together[1, 12:], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_in_one_sequence_dont_see_each_other(model, tokens, dtype):
    first, second = tokens[:1, :5], tokens[1:, :7]
    packed = torch.cat((first, second), 1)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(packed, document_ids=documents).logits.float()
        alone = torch.cat((model(first).logits, model(second).logits), 1).float()
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
    torch.testing.assert_close(out, alone, **tolerance)


def test_documents_and_padding_together_stay_finite(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    documents = torch.zeros_like(tokens)
    out = model(tokens, attention_mask=mask, document_ids=documents)
    assert torch.isfinite(out.logits).all()
    torch.testing.assert_close(out.logits[1], model(tokens).logits[1], **CLOSE)


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_counts_once(make_model, tokens, reentrant):
    model = make_model(dropout=0.1, router_jitter=0.05, capacity_factor=1.0, router="confidence").train()
    torch.manual_seed(7)
    plain, plain_grads = backward(model, input_ids=tokens, labels=tokens)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    torch.manual_seed(7)
    if reentrant:
        model.enable_input_require_grads()
    checkpointed, grads = backward(model, input_ids=tokens, labels=tokens)
    assert torch.equal(plain.loss, checkpointed.loss)
    assert torch.equal(plain.aux_loss, checkpointed.aux_loss)
    for name, grad in plain_grads.items():
        assert torch.equal(grad, grads[name]), name
    for a, b in zip(plain.router_statistics, checkpointed.router_statistics, strict=True):
        assert torch.equal(a.load_E, b.load_E)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_bit_equal_in_a_fresh_process(make_model, tokens, tmp_path, tied):
    model = make_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    torch.save(
        {"tokens": tokens, "logits": model(tokens).logits, "state": model.state_dict()}, tmp_path / "expected.pt"
    )
    program = """
import json, sys, torch
import ava_core.models
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
expected = torch.load(sys.argv[1] + "/expected.pt")
state = model.state_dict()
print(json.dumps({
    "keys": sorted(state) == sorted(expected["state"]),
    "weights": all(torch.equal(state[k], v) for k, v in expected["state"].items()),
    "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    "logits": torch.equal(model(expected["tokens"]).logits, expected["logits"]),
}))
"""
    arguments = [str(tmp_path), str(torch.get_num_threads())]  # another number of threads sums in another order
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == {"keys": True, "weights": True, "tied": tied, "logits": True}


def test_auto_classes_know_the_model(model):
    config = AutoConfig.for_model("ava_moe", hidden_size=32, num_layers=1, vocab_size=10)
    assert isinstance(config, EnhancedMoEConfig)
    assert isinstance(AutoModel.from_config(config), EnhancedMoEModel)
    assert isinstance(AutoModelForCausalLM.from_config(config), EnhancedMoEForCausalLM)


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
