"""The router of a decoder layer as ONNX nodes, for both graphs. Shapes: see `ava_core.models.shapes`.

Tokens may have one leading axis (T) or two (B, S); the experts are the last one.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig
from ava_core.models.routing import ROUTERS
from ava_core.onnx.graph import GraphWriter
from ava_core.onnx.parameters import Parameters

END = 2**62
"""End of a Slice that goes to the end of its axis."""
CLOSED = -1e30
"""Added to the logits of experts in groups that weren't chosen, to mask them."""


def require_router(config: EnhancedMoEConfig) -> None:
    """Refuse a router that has no export.

    Raises:
        AvaError: its class has no `exported_as`.
    """
    known = [name for name, router in ROUTERS.items() if router.exported_as]
    if config.router not in known:
        raise AvaError(f"router = {config.router}: has no ONNX export: it must be one of {', '.join(known)}")


def add_router(
    w: GraphWriter, config: EnhancedMoEConfig, parameters: Parameters, gate_logits: str, at: str
) -> tuple[str, str, str, str]:
    """Add what `Router.forward` does in evaluation mode.

    Args:
        w: takes the nodes.
        config: the model's.
        parameters: the model's; the expert bias is taken from it.
        gate_logits: name of the gate's logits (..., num_logits).
        at: prefix of the nodes' names.

    Returns:
        Names of the experts' logits and gate values (..., E), 0 where an expert isn't chosen; of the chosen experts
        (..., K), and which of these slots are used (bool), or "" for all of them.
    """
    kind = ROUTERS[config.router].exported_as
    if kind == "hierarchical" and config.num_expert_groups > 1:
        logits, probabilities, ranked = _grouped_scores(w, config, gate_logits, at)
    else:
        logits = gate_logits
        probabilities = w.add("Softmax", [logits], f"{at}.probabilities", axis=-1)
        # Over the logits for top-k, as in PyTorch: probabilities of very unlikely experts may tie by underflow.
        ranked = logits
        if kind == "confidence":
            ranked = probabilities
        elif kind == "expert_bias":
            bias = w.constant(f"{at}.expert_bias", parameters.take(f"{at}.expert_bias").numpy())
            ranked = w.add("Add", [probabilities, bias], f"{at}.biased")
    top = w.add("TopK", [ranked, w.indices(config.max_slots)], f"{at}.top", f"{at}.ids", axis=-1)
    ids = f"{at}.ids"
    weights = w.add("GatherElements", [probabilities, ids], f"{at}.gathered", axis=-1)
    used = ""
    if kind == "confidence" and config.confidence_threshold < 1:
        cumulative = w.add("CumSum", [top, w.index(-1)], f"{at}.cumulative")
        before = w.add("Sub", [cumulative, top], f"{at}.before")
        threshold = np.asarray(config.confidence_threshold, np.float32)
        open_slots = w.add("Less", [before, w.constant("confidence_threshold", threshold)], f"{at}.open")
        first = w.constant("first_slot", np.arange(config.max_slots) == 0)
        used = w.add("Or", [open_slots, first], f"{at}.used")
        mask = w.add("Cast", [used], f"{at}.used.float32", to=TensorProto.FLOAT)
        weights = w.add("Mul", [weights, mask], f"{at}.weights")
    if config.normalize_router_weights:
        total = w.add("ReduceSum", [weights, w.indices(-1)], f"{at}.total", keepdims=1)
        weights = w.add("Div", [weights, total], f"{at}.normalized")
    zeros = w.add("Sub", [probabilities, probabilities], f"{at}.zeros")
    return logits, w.add("ScatterElements", [zeros, ids, weights], f"{at}.weights.TE", axis=-1), ids, used


def _grouped_scores(w: GraphWriter, config: EnhancedMoEConfig, gate_logits: str, at: str) -> tuple[str, str, str]:
    """Log-probabilities, probabilities and what is ranked, (..., E) each: `HierarchicalRouter`."""
    G, last = config.num_expert_groups, w.indices(-1)
    groups = w.add("Slice", [gate_logits, w.indices(0), w.indices(G), last], f"{at}.groups")
    inside = w.add("Slice", [gate_logits, w.indices(G), w.indices(END), last], f"{at}.inside")
    # Tokens in one axis, whatever they came in: a reshape to more axes would have to name them all.
    groups_TG = w.add("Reshape", [groups, w.indices(-1, G)], f"{at}.groups.TG")
    inside_TGI = w.add("Reshape", [inside, w.indices(-1, G, config.num_experts // G)], f"{at}.inside.TGI")
    log_group_TG = w.add("LogSoftmax", [groups_TG], f"{at}.groups.log", axis=-1)
    log_group_TG1 = w.add("Unsqueeze", [log_group_TG, w.indices(2)], f"{at}.groups.log.TG1")
    log_inside_TGI = w.add("LogSoftmax", [inside_TGI], f"{at}.inside.log", axis=-1)
    log_TGI = w.add("Add", [log_group_TG1, log_inside_TGI], f"{at}.log_product")
    shape = w.add("Shape", [gate_logits], f"{at}.shape", end=-1)
    shape = w.add("Concat", [shape, w.indices(config.num_experts)], f"{at}.shape.E", axis=0)
    logits = w.add("Reshape", [log_TGI, shape], f"{at}.log_product.TE")
    probabilities = w.add("Exp", [logits], f"{at}.probabilities")
    if config.num_groups_per_token == G:
        return logits, probabilities, logits
    best = w.add("TopK", [groups_TG, w.indices(config.num_groups_per_token)], f"{at}.best_groups", f"{at}.group_ids")
    none = w.add("Mul", [groups_TG, w.constant("zero", np.zeros((), np.float32))], f"{at}.groups.zeros")
    closed_TG = w.add("Add", [none, w.constant("closed", np.full((), CLOSED, np.float32))], f"{at}.closed")
    opened = w.add("Mul", [best, w.constant("zero", np.zeros((), np.float32))], f"{at}.open")
    closed_TG = w.add("ScatterElements", [closed_TG, f"{at}.group_ids", opened], f"{at}.closed.chosen", axis=1)
    closed_TG1 = w.add("Unsqueeze", [closed_TG, w.indices(2)], f"{at}.closed.TG1")
    open_TGI = w.add("Add", [log_TGI, closed_TG1], f"{at}.open.TGI")
    return logits, probabilities, w.add("Reshape", [open_TGI, shape], f"{at}.open.TE")
