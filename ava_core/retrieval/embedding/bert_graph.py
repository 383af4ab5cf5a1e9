"""BERT's encoder as an ONNX graph of ONNX Runtime's fused operators, with mean pooling: texts to unit vectors.

The encoder is that of Devlin et al. 2019 (arXiv 1810.04805); pooling and normalisation are those of Sentence-BERT
(Reimers and Gurevych 2019, arXiv 1908.10084). Sizes: B texts, S tokens, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
IR_VERSION = 10
OUTPUT = "vectors"


@dataclass
class _Graph:
    """Collects nodes and weights. Each node has one output, of the node's own name."""

    weights: Mapping[str, np.ndarray]
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    def add(self, operator: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.tensors.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def product(self, values: str, name: str) -> str:
        """values @ weight^T, without the bias."""
        weight = self.constant(f"{name}.weight^T", self.weights[f"{name}.weight"].T)
        return self.add("MatMul", [values, weight], f"{name}.product")

    def norm(self, values: str, residual: str, name: str, bias: str, eps: float) -> str:
        """Layer norm of values + residual + bias."""
        inputs = [values, residual, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), self.weight(bias)]
        return self.add("SkipLayerNormalization", inputs, name, CONTRIB, epsilon=eps)


def sentence_encoder(weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> bytes:
    """The graph, serialised.

    Inputs `tokens` and `mask`, (B, S) int32, padded on the right; output `vectors`, (B, H) float32 of unit length.

    Args:
        weights: tensors of `transformers.BertModel`, float32, by their names there.
        config: its config.json.

    Raises:
        KeyError: a tensor is missing.
    """
    graph, eps = _Graph(weights), float(config["layer_norm_eps"])
    hidden = _embed(graph, eps)
    for number in range(int(config["num_hidden_layers"])):
        hidden = _layer(graph, hidden, f"encoder.layer.{number}", int(config["num_attention_heads"]), eps)
    _pool(graph, hidden)
    shape = ["B", "S"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "sentence-encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("tokens", "mask")],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", int(config["hidden_size"])])],
            list(graph.tensors.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _embed(graph: _Graph, eps: float) -> str:
    """(B, S, H): words, positions and the only segment, normalised."""
    name = "embeddings"
    segment = graph.weights[f"{name}.token_type_embeddings.weight"][0]
    # A text has one segment, whose vector is one more addend of every position.
    positions = graph.constant(f"{name}.positions", graph.weights[f"{name}.position_embeddings.weight"] + segment)
    words = graph.add("Gather", [graph.weight(f"{name}.word_embeddings.weight"), "tokens"], f"{name}.words")
    shape = graph.add("Shape", ["tokens"], f"{name}.shape", start=1, end=2)
    zero, one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))
    first = graph.add("Slice", [positions, zero, shape, zero, one], f"{name}.first_positions")
    both = graph.add("Add", [words, first], f"{name}.sum")
    norm = [both, graph.weight(f"{name}.LayerNorm.weight"), graph.weight(f"{name}.LayerNorm.bias")]
    return graph.add("LayerNormalization", norm, f"{name}.LayerNorm", epsilon=eps, axis=-1)


def _layer(graph: _Graph, hidden: str, name: str, heads: int, eps: float) -> str:
    own = f"{name}.attention.self"
    parts = ("query", "key", "value")
    joined = graph.constant(
        f"{own}.weight", np.concatenate([graph.weights[f"{own}.{part}.weight"].T for part in parts], axis=1)
    )
    bias = graph.constant(f"{own}.bias", np.concatenate([graph.weights[f"{own}.{part}.bias"] for part in parts]))
    attended = graph.add("Attention", [hidden, joined, bias, "mask"], own, CONTRIB, num_heads=heads)
    out = f"{name}.attention.output"
    given = graph.product(attended, f"{out}.dense")
    hidden = graph.norm(given, hidden, f"{out}.LayerNorm", f"{out}.dense.bias", eps)
    wide = graph.product(hidden, f"{name}.intermediate.dense")
    wide = graph.add("BiasGelu", [wide, graph.weight(f"{name}.intermediate.dense.bias")], f"{name}.gelu", CONTRIB)
    given = graph.product(wide, f"{name}.output.dense")
    return graph.norm(given, hidden, f"{name}.output.LayerNorm", f"{name}.output.dense.bias", eps)


def _pool(graph: _Graph, hidden: str) -> None:
    """The mean over the tokens that are there, of unit length."""
    mask = graph.add("Cast", ["mask"], "pooling.mask", to=TensorProto.FLOAT)
    last, middle = graph.constant("last", np.array([-1])), graph.constant("middle", np.array([1]))
    column = graph.add("Unsqueeze", [mask, last], "pooling.column")
    masked = graph.add("Mul", [hidden, column], "pooling.masked")
    total = graph.add("ReduceSum", [masked, middle], "pooling.sum", keepdims=0)
    # Dividing by the count would change the length alone, which is 1 in the end.
    graph.add("LpNormalization", [total], OUTPUT, axis=-1, p=2)
