"""Writing an ONNX graph: nodes by name, small constants inside, large weights in a file beside it.

The bytes depend on what was added and on its order alone: no timestamps, source paths or generated names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ava_core.onnx.block_weights import BlockWeights
from ava_core.onnx.shape import GRAPH_FILE, WEIGHTS_FILE

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
OPSET = 23
"""The first with RMSNormalization, RotaryEmbedding and Attention."""
IR_VERSION = 11
INLINE_BYTES = 1024
"""Tensors up to this size stay in the graph, where shape inference can see them."""
ALIGNMENT = 64
"""Bytes; each tensor in the weights file begins at a cache line."""

Shape = Sequence[int | str] | None


class GraphWriter:
    """Collects a graph and streams its large weights into `folder`, or into memory, as they are added.

    Args:
        folder: where both files go; None: to `serialized` and `weights`, unchecked.

    Attributes:
        serialized: the graph, after `save`.
        weights: the large weights, where there is no folder.
        digests: SHA-256 of each tensor's bytes, and of the graph under its file's name, to hold the files against.

    Use as a context manager; `save` ends it. Every node has one main output with the node's own name.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.weights = BytesIO()
        self.serialized = b""
        self._weights: BinaryIO = self.weights if folder is None else (folder / WEIGHTS_FILE).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._offsets: dict[bytes, int] = {}
        self.digests: dict[str, str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder is not None:
            self._weights.close()

    def input(self, name: str, element: int, shape: Shape, default: np.ndarray | None = None) -> str:
        """Declare an input; one with a default may be left out when the model is run."""
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        if default is not None:
            self._tensors[name] = numpy_helper.from_array(default, name)
            self.digests[name] = hashlib.sha256(self._tensors[name].raw_data).hexdigest()
        return name

    def output(self, name: str, element: int, shape: Shape) -> None:
        """Declare a value as an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, element, shape))

    def add(self, operator: str, inputs: Sequence[str], name: str, *others: str, **attributes: Any) -> str:
        """Add a node of that name; return its first output, which has the same name. `others` name further outputs."""
        self._nodes.append(helper.make_node(operator, inputs, [name, *others], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """A float32, int64, uint8 or bool constant; the same name twice is one constant, for equal values."""
        self._store(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, _little_endian(value))
        return name

    def indices(self, *values: int) -> str:
        """A one-dimensional int64 constant, named by its values."""
        name = "indices_" + "_".join(str(value).replace("-", "minus") for value in values)
        return self.constant(name, np.asarray(values, np.int64))

    def index(self, value: int) -> str:
        """A scalar int64 constant, named by its value."""
        return self.constant(f"index_{value}".replace("-", "minus"), np.asarray(value, np.int64))

    def widened(self, name: str, value: np.ndarray) -> str:
        """A float32 constant of values that bfloat16 can hold, stored as such; the runtime widens it once, at start."""
        if name not in self._tensors:
            upper_half = (value.view(np.uint32) >> np.uint32(16)).astype("<u2")
            self._store(name, TensorProto.BFLOAT16, value.shape, upper_half.tobytes())
            self.add("Cast", [name], f"{name}.float32", to=TensorProto.FLOAT)
        return f"{name}.float32"

    def half(self, name: str, value: np.ndarray) -> str:
        """A float32 constant that is stored as the float16 values it is given; the runtime widens it once, at start."""
        self._store(name, TensorProto.FLOAT16, value.shape, value.astype("<f2", copy=False).tobytes())
        return self.add("Cast", [name], f"{name}.float32", to=TensorProto.FLOAT)

    def block_weights(self, name: str, weights: BlockWeights) -> str:
        """A rounded matrix and the nodes that turn it into float32, of the matrix's shape."""
        integers, scales = weights.integers, weights.scales
        kind = TensorProto.INT8 if weights.bits == 8 else TensorProto.INT4
        packed = integers.tobytes() if weights.bits == 8 else _pack_nibbles(integers)
        self._store(f"{name}.integers", kind, integers.shape, packed)
        floats = self.widened(f"{name}.scales", scales)
        inputs, axis = [f"{name}.integers", floats], integers.ndim - 1
        return self.add("DequantizeLinear", inputs, name, axis=axis, block_size=weights.block_size)

    def save(self, name: str, description: str, metadata: dict[str, str]) -> None:
        """Write the graph and check it, if there is a folder for it.

        Raises:
            onnx.checker.ValidationError: a node is not what the ONNX standard allows; a defect of the caller.
        """
        if self.folder is not None:
            self._weights.close()
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._tensors.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._domains().items()],
            ir_version=IR_VERSION,
            producer_name="ava",
            doc_string=description,
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        self.serialized = model.SerializeToString(deterministic=True)
        self.digests[GRAPH_FILE] = hashlib.sha256(self.serialized).hexdigest()
        if self.folder is not None:
            path = self.folder / GRAPH_FILE
            path.write_bytes(self.serialized)
            onnx.checker.check_model(path, full_check=True)

    def _domains(self) -> dict[str, int]:
        return {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}

    def _store(self, name: str, kind: int, shape: Sequence[int], data: bytes) -> None:
        if name in self._tensors:
            return
        self.digests[name] = hashlib.sha256(data).hexdigest()
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        if len(data) <= INLINE_BYTES:
            tensor.raw_data = data
        else:
            tensor.data_location = TensorProto.EXTERNAL
            location = {"location": WEIGHTS_FILE, "offset": self._write(data), "length": len(data)}
            for key, value in location.items():
                tensor.external_data.add(key=key, value=str(value))
        self._tensors[name] = tensor

    def _write(self, data: bytes) -> int:
        """Where the data begins. Equal data are written once: an embedding is the head as well, in other dimensions."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            self._weights.write(b"\0" * (-self._weights.tell() % ALIGNMENT))
            self._offsets[digest] = self._weights.tell()
            self._weights.write(data)
        return self._offsets[digest]


def _little_endian(value: np.ndarray) -> bytes:
    return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _pack_nibbles(integers: np.ndarray) -> bytes:
    """Two 4-bit integers per byte, the first in the low half (ONNX, "4 bit integer types")."""
    nibbles = integers.reshape(-1).view(np.uint8) & np.uint8(15)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << np.uint8(4))).tobytes()
