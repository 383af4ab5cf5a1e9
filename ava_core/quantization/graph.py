"""Writing an ONNX graph: nodes by name, small constants inside, large weights in a file beside it.

The bytes depend on what was added and on its order alone: no timestamps, source paths or generated names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ava_core.quantization.blockwise import BlockWeights

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
OPSET = 23
"""The first with RMSNormalization, RotaryEmbedding and Attention."""
IR_VERSION = 11
INLINE_BYTES = 1024
"""Tensors up to this size stay in the graph, where shape inference can see them."""
ALIGNMENT = 64

Shape = Sequence[int | str] | None


class GraphWriter:
    """Collects a graph and streams its large weights into `folder` as they are added.

    Use as a context manager; `save` ends it. Every node has one main output with the node's own name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._weights = (folder / WEIGHTS_FILE).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()

    def input(self, name: str, element: int, shape: Shape, default: np.ndarray | None = None) -> str:
        """Declare an input; one with a default may be left out when the model is run."""
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        if default is not None:
            self._tensors[name] = numpy_helper.from_array(default, name)
        return name

    def output(self, name: str, element: int, shape: Shape) -> None:
        """Declare a value as an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, element, shape))

    def add(self, operator: str, inputs: Sequence[str], name: str, *others: str, **attributes: Any) -> str:
        """Add a node of that name; return its first output, which has the same name. `others` name further outputs."""
        self._nodes.append(helper.make_node(operator, inputs, [name, *others], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """A float32, int64 or bool constant; the same name twice is one constant, for equal values."""
        self._store(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, _little_endian(value))
        return name

    def indices(self, *values: int) -> str:
        """A one-dimensional int64 constant, named by its values."""
        name = "indices_" + "_".join(str(value).replace("-", "minus") for value in values)
        return self.constant(name, np.asarray(values, np.int64))

    def index(self, value: int) -> str:
        """A scalar int64 constant, named by its value."""
        return self.constant(f"index_{value}".replace("-", "minus"), np.asarray(value, np.int64))

    def block_weights(self, name: str, weights: BlockWeights) -> str:
        """A rounded matrix and the nodes that turn it into float32 (O, I)."""
        integers_OI, scales_OJ = weights.integers_OI, weights.scales_OJ
        kind = TensorProto.INT8 if weights.bits == 8 else TensorProto.INT4
        packed = integers_OI.tobytes() if weights.bits == 8 else _pack_nibbles(integers_OI)
        self._store(f"{name}.integers", kind, integers_OI.shape, packed)
        upper_half = (scales_OJ.view(np.uint32) >> np.uint32(16)).astype("<u2")
        self._store(f"{name}.scales", TensorProto.BFLOAT16, scales_OJ.shape, upper_half.tobytes())
        scales = self.add("Cast", [f"{name}.scales"], f"{name}.scales.float32", to=TensorProto.FLOAT)
        return self.add("DequantizeLinear", [f"{name}.integers", scales], name, axis=1, block_size=weights.block_size)

    def save(self, name: str, description: str, metadata: dict[str, str]) -> None:
        """Write the graph and check it.

        Raises:
            onnx.checker.ValidationError: a node is not what the ONNX standard allows; a defect of the caller.
        """
        self._weights.close()
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._tensors.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="ava",
            doc_string=description,
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        path = self.folder / GRAPH_FILE
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)

    def _store(self, name: str, kind: int, shape: Sequence[int], data: bytes) -> None:
        if name in self._tensors:
            return
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        if len(data) <= INLINE_BYTES:
            tensor.raw_data = data
        else:
            self._weights.write(b"\0" * (-self._weights.tell() % ALIGNMENT))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": WEIGHTS_FILE, "offset": self._weights.tell(), "length": len(data)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._weights.write(data)
        self._tensors[name] = tensor


def _little_endian(value: np.ndarray) -> bytes:
    return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _pack_nibbles(integers_OI: np.ndarray) -> bytes:
    """Two 4-bit integers per byte, the first in the low half (ONNX, "4 bit integer types")."""
    nibbles = integers_OI.reshape(-1).view(np.uint8) & np.uint8(15)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << np.uint8(4))).tobytes()
