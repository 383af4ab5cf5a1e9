"""Our layers in bfloat16, as training runs them, against float32 on the same inputs: outputs and gradients.

The reference is computed on the same device, in float32 without TF32, by other code: every expert for every token, and
attention as two products and a softmax. It has the bfloat16 weights and inputs, widened, and takes the routes that the
bfloat16 layer took, so that nothing is compared but the arithmetic. An error is |found - expected| / |expected|, over
all entries of a tensor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ava_core.config.routing import ROUTERS
from ava_core.config.train import TrainConfig
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.attention import attend
from ava_core.models.masks import dense_mask, layer_masks
from ava_core.models.moe import MoELayer
from ava_core.models.routing import RouteTape
from ava_core.training.engine.compiled import CompiledLayers
from ava_core.training.precision import set_weight_dtype
from ava_core.training.process import prepare
from benchmarks.gpu.plan import Outcome, Plan

OUTPUT_BOUND, GRADIENT_BOUND = 0.01, 0.02
"""Of a layer. bfloat16 rounds to 1 part in 256; each value passes a few roundings, whose errors average out."""
MODEL_BOUNDS = {"loss": 0.002, "gradients": 0.02, "worst gradient": 0.25}
"""Of a model of two layers, in which more roundings follow one another: gradients of all parameters together, and of
the one that is furthest off. That is a small one, but a parameter that gets no gradient at all has an error of 1."""
LAYER_BOUNDS = {"output": OUTPUT_BOUND, "gradients": GRADIENT_BOUND}
PLAIN = {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "tau": 1.0}
Errors = dict[str, float]


def run(plan: Plan) -> Outcome:
    """The errors of every case, by its name; a fault for each that is above its bound."""
    prepare(plan.threads, 0)
    outcome = Outcome()
    cases = {**_mixtures(plan), **_attentions(plan), "model": lambda: model_errors(plan)}
    cases["model, recomputed"] = lambda: model_errors(plan, recomputed=True)
    if plan.device == "cuda":  # elsewhere `train.compile` is refused
        cases["model, compiled"] = lambda: model_errors(plan, compiled=True)
        cases["model, compiled, recomputed"] = lambda: model_errors(plan, compiled=True, recomputed=True)
    for name, measure in cases.items():
        try:
            found = measure()
        except Exception as error:  # the other cases are still of interest
            outcome.faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        outcome.figures[name] = found
        for what, bound in (MODEL_BOUNDS if name.startswith("model") else LAYER_BOUNDS).items():
            outcome.at_most(f"{name}: error of {what}", found[what], bound)
    return outcome


def configuration(plan: Plan, **changes: Any) -> EnhancedMoEConfig:
    """The shapes of gpu/base, two layers of it; in small for `tiny`."""
    large = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "num_ffn_experts": 16}
    large |= {"expert_intermediate_size": 768, "num_constant_experts": 6, "vocab_size": 32768}
    small = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_ffn_experts": 8}
    small |= {"expert_intermediate_size": 64, "vocab_size": 512}
    return EnhancedMoEConfig(num_layers=2, **{**(small if plan.tiny else large), **changes})


def batch(plan: Plan) -> tuple[int, int]:
    """Sequences and tokens of each."""
    return (2, 128) if plan.tiny else (4, 1024)


def _mixtures(plan: Plan) -> dict[str, Callable[[], Errors]]:
    """Every route: routers, zero-computation and shared experts, dropped and padded tokens, ways to evaluate."""
    ways = ("native", "looped", "grouped_mm") if plan.device == "cpu" else ("grouped_mm", "looped")
    cases: dict[str, dict[str, Any]] = {
        "top_k, FFN experts alone": PLAIN,
        "top_k, shared experts": {"num_shared_experts": 1},
        "top_k, capacity 1": {"capacity_factor": 1.0},
        "top_k, padding": {"padded": True},
        **{router: {"router": router} for router in ROUTERS},
        "hierarchical, 2 of 4 groups": {"router": "hierarchical", "num_expert_groups": 4, "num_groups_per_token": 2},
        **{f"top_k, {way}": {"experts_implementation": way} for way in ways},
    }

    def measured(changes: Mapping[str, Any]) -> Callable[[], Errors]:
        return lambda: mixture_errors(plan, **changes)

    return {f"mixture: {name}": measured(changes) for name, changes in cases.items()}


def mixture_errors(plan: Plan, *, padded: bool = False, **changes: Any) -> Errors:
    """Of one mixture: `output`, and `gradients`, the largest of its input's and its parameters'."""
    torch.manual_seed(0)
    config = configuration(plan, **changes)
    layer = MoELayer(config, 0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=config.initializer_range)
    layer.to(plan.device).train()
    set_weight_dtype(layer, torch.bfloat16, accumulated=False)
    reference = _reference(layer, lambda: MoELayer(_dense(config), 0)).to(plan.device).train()
    x_BSD = torch.randn(*batch(plan), config.hidden_size, device=plan.device).bfloat16()
    mask_T = None
    if padded:
        mask_T = torch.rand(x_BSD.shape[0] * x_BSD.shape[1], device=plan.device) > 0.2
    tape = RouteTape()
    grad = torch.randn_like(x_BSD)
    found = _outcome(layer, x_BSD, grad, lambda module, x: module(x, None, mask_T, tape)[0])
    given = RouteTape(tape.routes)
    expected = _outcome(reference, x_BSD.float(), grad.float(), lambda module, x: module(x, None, mask_T, given)[0])
    return _errors(found, expected)


def _outcome(module: nn.Module, x: Tensor, grad: Tensor, call: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    """Output, the input's gradient and the parameters'."""
    x = x.clone().requires_grad_()
    out = call(module, x)
    out.backward(grad)
    assert x.grad is not None
    return [out.detach(), x.grad, *_gradients(module)]


def _gradients(module: nn.Module) -> list[Tensor]:
    """Of all parameters; zeros for one that has none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def _attentions(plan: Plan) -> dict[str, Callable[[], Errors]]:
    B, S = batch(plan)
    documents = torch.arange(S, device=plan.device).mul(5).div(S, rounding_mode="floor").expand(B, S)
    padding = torch.ones(B, S, dtype=torch.long, device=plan.device)
    padding[0, : S // 3] = 0
    cases: dict[str, dict[str, Any]] = {
        "causal": {},
        "as many key heads": {"grouped": False},
        "documents": {"documents": documents},
        "padding": {"padding": padding},
        "documents, padding": {"documents": documents, "padding": padding},
        "window, documents": {"documents": documents, "window": S // 4},
        "one token against a cache": {"queries": 1},
    }

    def measured(given: Mapping[str, Any]) -> Callable[[], Errors]:
        return lambda: attention_errors(plan, **given)

    return {f"attention: {name}": measured(given) for name, given in cases.items()}


def attention_errors(
    plan: Plan,
    *,
    documents: Tensor | None = None,
    padding: Tensor | None = None,
    window: int | None = None,
    grouped: bool = True,
    queries: int | None = None,
) -> Errors:
    """Of `attend` under the model's own masks: `output`, and `gradients` of queries, keys and values.

    What padding looks at means nothing, and it isn't compared; it must be finite.
    """
    torch.manual_seed(0)
    config = configuration(plan, **({"sliding_window": window} if window else {}))
    B, S = batch(plan)
    A, H = int(config.head_dim), config.num_attention_heads
    G = int(config.num_key_value_heads) if grouped else H
    embedded = torch.zeros(B, S, config.hidden_size, device=plan.device, dtype=torch.bfloat16)
    mask = None
    if queries is None:
        config._attn_implementation = "sdpa"  # for Transformers' masks, which a model sets
        positions = torch.arange(S, device=plan.device)[None]
        mask = layer_masks(config, embedded, padding, None, positions, documents)[0]
    shapes = ((B, H, queries or S, A), (B, G, S, A), (B, G, S, A))
    given = [torch.randn(shape, device=plan.device).bfloat16() for shape in shapes]
    grad = torch.randn(shapes[0], device=plan.device).bfloat16()
    if padding is not None:
        grad = grad * padding[:, None, :, None]
    results = []
    for function, dtype in ((attend, torch.bfloat16), (attend_in_float32, torch.float32)):
        q, k, v = (tensor.to(dtype, copy=True).requires_grad_() for tensor in given)
        out = function(q, k, v, mask)
        out.backward(grad.to(dtype))
        if padding is not None:
            out = torch.where(padding[:, None, :, None] == 1, out, out * 0)  # a nan stays one
        results.append([out.detach(), *(tensor.grad for tensor in (q, k, v) if tensor.grad is not None)])
    return _errors(*results)


def attend_in_float32(q_BHSA: Tensor, k_BGSA: Tensor, v_BGSA: Tensor, mask: Tensor | None) -> Tensor:
    """What `attend` must give: softmax(q k^T / sqrt(A)) v; zeros where a query looks at nothing."""
    S, S_kv = q_BHSA.shape[2], k_BGSA.shape[2]
    k_BHSA, v_BHSA = (x.repeat_interleave(q_BHSA.shape[1] // x.shape[1], dim=1) for x in (k_BGSA, v_BGSA))
    if mask is None:
        mask = torch.ones(S, S_kv, dtype=torch.bool, device=q_BHSA.device).tril(S_kv - S)[None, None]
    elif mask.dtype != torch.bool:  # where each query begins to look
        mask = dense_mask(mask, 0, 0, S_kv)
    scores = (q_BHSA @ k_BHSA.mT / q_BHSA.shape[-1] ** 0.5).masked_fill(~mask, torch.finfo(torch.float32).min)
    return (scores.softmax(dim=-1) * mask) @ v_BHSA


def model_errors(plan: Plan, *, compiled: bool = False, recomputed: bool = False) -> Errors:
    """Of two layers with embedding, head and loss, on rows of several documents: see `MODEL_BOUNDS`.

    Compiled, the layers are `train.compile`'s; recomputed, they are `train.gradient_checkpointing`'s.
    """
    torch.manual_seed(0)
    B, S = batch(plan)
    config = configuration(plan, max_position_embeddings=S)
    dense = _dense(config)  # before the model is there: Transformers notes its way to evaluate experts in `config`
    model = EnhancedMoEForCausalLM(config)
    set_weight_dtype(model, torch.bfloat16, accumulated=False)
    model.to(plan.device).train()  # type: ignore[arg-type]
    reference = _reference(model, lambda: EnhancedMoEForCausalLM(dense)).to(plan.device).train()
    for each in (model, reference):
        each.model.auxiliary_scale = 0.0  # as the engine has it: the loss contains what the routers add
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = torch.randint(config.vocab_size, (B, S)).to(plan.device)
    documents = torch.arange(S, device=plan.device).mul(3).div(S, rounding_mode="floor").expand(B, S)
    inputs: dict[str, Any] = {"input_ids": tokens, "labels": tokens, "document_ids": documents, "use_cache": False}
    with torch.no_grad():
        routes = model(**inputs, output_routes=True, return_logits=False).routes
    with CompiledLayers(model, TrainConfig()).in_force() if compiled else nullcontext():
        found = model(**inputs, routes=routes, return_logits=False)
        found.loss.backward()
    expected = reference(**inputs, routes=routes, return_logits=False)
    expected.loss.backward()
    gradients = [_gradients(each) for each in (model, reference)]
    return {
        "loss": relative_error(found.loss.detach(), expected.loss.detach()),
        "gradients": relative_error(*(torch.cat([grad.float().flatten() for grad in each]) for each in gradients)),
        "worst gradient": max(relative_error(*pair) for pair in zip(*gradients, strict=True)),
    }


def _dense(config: EnhancedMoEConfig) -> EnhancedMoEConfig:
    """The same model, which evaluates every expert for every token, by plain products."""
    changed = copy.deepcopy(config)
    changed.experts_implementation = "dense"
    return changed


def _reference(layer: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """A module in float32 with the same weights and buffers."""
    made = make()
    made.load_state_dict({name: value.float().cpu() for name, value in layer.state_dict().items()}, strict=True)
    return made


def _errors(found: list[Tensor], expected: list[Tensor]) -> Errors:
    each = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    return {"output": each[0], "gradients": max(each[1:])}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, 0 where both are 0; infinite where something isn't a number."""
    apart, size = (float(each.float().norm()) for each in (found.float() - expected.float(), expected))
    if apart == size == 0:
        return 0.0
    error = apart / size if size else math.inf
    return error if math.isfinite(error) else math.inf
