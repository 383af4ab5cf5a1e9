"""The weights of an exported folder, read back from its files and held against the model's, bit by bit.

They are read by what the operators define, and at the node that computes with a weight: a matrix that is intact but at
another's node is as wrong as a damaged one. Shares no code with the export, so a fault in its packing shows, which a
digest taken after it can't see.

The operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from ava_core.errors import ParityError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.onnx.graph import GRAPH_FILE

WEIGHT_INPUTS = {
    "MatMul": 1,
    "MatMulNBits": 1,
    "Gather": 0,
    "GatherBlockQuantized": 0,
    "RMSNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "Add": 1,
}
"""Operators that compute with a matrix or a vector of the model, and at which position of their inputs it is."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
NORM = re.compile(r"(?:_layernorm|\.norm|_norm)$")

Part = tuple[str, np.ndarray]
"""A parameter's name, and its values as a node should hold them."""
Values = Callable[[str], np.ndarray]


def verify_weights(folder: Path, model: EnhancedMoEForCausalLM, rounded: Mapping[str, Stored]) -> None:
    """Hold every weight that the folder's graph computes with against what was rounded, or against the float weight.

    Args:
        folder: output of `export_onnx`, of either kind.
        model: the float model.
        rounded: matrices with rounded weights, by parameter.

    Raises:
        ParityError: the first parameter that the files hold other values for, and where; or one that no node uses.
    """
    tensors = model.state_dict()

    def values(name: str) -> np.ndarray:
        stored = rounded.get(name)
        if isinstance(stored, BlockWeights):
            return stored.dequantize()
        return tensors[name].detach().float().numpy() if stored is None else stored.astype(np.float32)

    unused = set(tensors)
    if model.config.tie_word_embeddings:
        unused.discard("lm_head.weight")
    graph = onnx.load(folder / GRAPH_FILE).graph
    constants = _Constants(graph)
    for node in graph.node:
        for expected, found in _weights_of(node, constants, values, model.config):
            if found.shape[0] != sum(len(rows) for _, rows in expected):
                raise ParityError(
                    f"{folder}: {node.name} holds a matrix of shape {found.shape}: the model's is another"
                )
            start = 0
            for name, rows in expected:
                _require_equal(folder, node.name, name, rows, found[start : start + len(rows)])
                unused.discard(name)
                start += len(rows)
    if unused:
        raise ParityError(f"{folder / GRAPH_FILE}: no node uses {', '.join(sorted(unused))}: the model does")


def _require_equal(folder: Path, node: str, name: str, expected: np.ndarray, found: np.ndarray) -> None:
    if expected.shape != found.shape:
        raise ParityError(f"{folder}: {name} has shape {found.shape} in {node}: must be {expected.shape}")
    wrong = expected != found
    if wrong.any():
        index = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ParityError(
            f"{folder}: {name}: {int(wrong.sum())} of {wrong.size} weights in the file aren't the ones that were to be"
            f" written, the first at {list(index)}, read by {node}: {float(found[index]):.6g}, must be"
            f" {float(expected[index]):.6g}"
        )


def _weights_of(
    node: NodeProto, constants: _Constants, values: Values, config: EnhancedMoEConfig
) -> Iterator[tuple[list[Part], np.ndarray]]:
    """The matrices that a node computes with: what they should hold, part by part, and what they do hold."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type in ("MoE", "QMoE"):
        at = re.sub(r"\.(?:mean|out)$", "", node.name)
        for name, weight in zip(
            (f"{at}.gate_up_proj", f"{at}.down_proj"), _experts(node, attributes, constants), strict=True
        ):
            yield [(name, values(name))], weight
        return
    position = WEIGHT_INPUTS.get(node.op_type)
    if position is None or (found := constants.value(node.input[position])) is None:
        return
    if node.op_type == "MatMulNBits":
        bits, block = attributes["bits"], attributes["block_size"]
        packed = found.reshape(attributes["N"], -1)
        found = constants.blocks(packed, node.input[2], node.input[3:4], bits, block)[:, : attributes["K"]]
    elif node.op_type == "GatherBlockQuantized":
        found = constants.blocks(found, node.input[2], node.input[3:4], attributes["bits"], attributes["block_size"])
    elif node.op_type == "MatMul" and not node.name.endswith(".constant"):
        found = found.T
    if (expected := _expected(node, values, config)) is not None:
        yield expected, found


def _experts(node: NodeProto, attributes: dict, constants: _Constants) -> Iterator[np.ndarray]:
    """The experts' matrices, all gates before all ups; the operator has them in turn (`swiglu_fusion=1`)."""
    if node.op_type == "MoE":
        first, second = (constants.required(node.input[position]) for position in (2, 4))
    else:
        bits, block = attributes["expert_weight_bits"], attributes["block_size"]
        first, second = (
            constants.blocks(
                constants.required(node.input[at]), node.input[at + 1], node.input[zero : zero + 1], bits, block
            )
            for at, zero in ((2, 11), (5, 12))
        )
    yield np.concatenate((first[:, 0::2], first[:, 1::2]), axis=1)
    yield second


def _expected(node: NodeProto, values: Values, config: EnhancedMoEConfig) -> list[Part] | None:
    """Which parameters a node should hold; None: it is none of the nodes with weights."""
    at, _, last = node.name.rpartition(".")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        names = ["model.embed_tokens.weight"] if node.name == "embedded" else []
    elif node.op_type == "Add":
        names = [node.input[1]] if node.input[1].endswith(".expert_bias") else []
    elif last == "normed" and at.endswith(".heads"):
        return _head_norms(at.removesuffix(".heads"), values, config)
    elif NORM.search(node.name):
        names = [f"{node.name}.weight"]
    elif node.name.endswith(".experts.gate_up"):
        weight = values(f"{node.name}_proj")
        N, rows, width = weight.shape
        return [(f"{node.name}_proj", weight.reshape(N, 2, rows // 2, width).swapaxes(0, 1).reshape(N * rows, width))]
    elif node.name.endswith(".experts.down"):
        weight = values(f"{node.name}_proj")
        return [(f"{node.name}_proj", weight.swapaxes(0, 1).reshape(weight.shape[1], -1))]
    elif last == "gate_and_mix":
        mix, name = values(f"{at}.zero_computation.mix_weight"), f"{at}.zero_computation.mix_weight"
        return [(f"{at}.gate.weight", values(f"{at}.gate.weight")), (name, mix[0::2] - mix[1::2])]
    else:
        names = {
            "logits": [head],
            "qkv": [f"{at}.{part}_proj.weight" for part in "qkv"],
            **{part: [f"{at}.{part}_proj.weight"] for part in (*"qkv", "gate_up", "down")},
            "gate": [f"{node.name}.weight"],
            "residual": [f"{at}.residual_weight"],
            "mix_logits": [f"{at}.mix_weight"],
            "constant": [f"{at}.constants"],
        }.get(last, [f"{node.name}.weight"])
    return [(name, values(name)) for name in names] or None


def _head_norms(at: str, values: Values, config: EnhancedMoEConfig) -> list[Part]:
    """The norms of all query and key heads, a row for each head."""
    heads = {"q": config.num_attention_heads, "k": int(config.num_key_value_heads or 0)}
    names = {part: f"{at}.{part}_norm.weight" for part in heads}
    return [(names[part], np.tile(values(names[part]), (count, 1))) for part, count in heads.items()]


class _Constants:
    """Values that don't depend on the graph's inputs, folded through the operators between a stored weight and the node
    that uses it: Cast, Transpose, Reshape, DequantizeLinear."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output}

    def required(self, name: str) -> np.ndarray:
        found = self.value(name)
        if found is None:
            raise ParityError(f"{GRAPH_FILE}: {name}: must be a constant")
        return found

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value, floats as float32; None: it depends on the inputs."""
        if name in self._tensors:
            kind = self._tensors[name].data_type
            found = numpy_helper.to_array(self._tensors[name])
            if kind in (TensorProto.INT4, TensorProto.INT8):
                return found.astype(np.int8)
            return found.astype(np.float32) if kind in FLOATS else found
        node = self._makers.get(name)
        if node is None or node.op_type not in ("Cast", "Transpose", "Reshape", "DequantizeLinear"):
            return None
        source = self.value(node.input[0])
        if source is None or node.op_type == "Cast":
            return source
        if node.op_type == "Transpose":
            return source.transpose(onnx.helper.get_node_attr_value(node, "perm"))
        if node.op_type == "Reshape":
            return source.reshape(self.required(node.input[1]))
        block = onnx.helper.get_node_attr_value(node, "block_size")
        return source.astype(np.float32) * _spread(self.required(node.input[1]), block)[..., : source.shape[-1]]

    def blocks(self, packed: np.ndarray, scales: str, zero_points: list[str], bits: int, block: int) -> np.ndarray:
        """A matrix (..., I) from its bytes (..., I * bits / 8): unsigned integers, the first in a byte's low bits.

        Args:
            packed: uint8.
            scales: name of the scales, a row of them for each row of the matrix.
            zero_points: name of the zero points, packed likewise; none or an empty name: 2^(bits - 1).
            bits: 2, 4 or 8.
            block: weights of a row that share a scale.
        """
        scale = self.required(scales).reshape(*packed.shape[:-1], -1)
        integers = _unpack(packed, bits)
        if zero_points and zero_points[0]:
            points = _unpack(self.required(zero_points[0]).reshape(*packed.shape[:-1], -1), bits)
            middle = _spread(points[..., : scale.shape[-1]], block)[..., : integers.shape[-1]]
        else:
            middle = np.full((), 1 << (bits - 1), np.float32)
        return (integers - middle) * _spread(scale, block)[..., : integers.shape[-1]]


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers as float32, the first of a byte in its low bits."""
    parts = [(packed >> np.uint8(shift)) & np.uint8((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1).astype(np.float32)


def _spread(per_block: np.ndarray, block: int) -> np.ndarray:
    return np.repeat(per_block, block, axis=-1)
