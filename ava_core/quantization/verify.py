"""Whether an exported folder holds the model's weights, tensor by tensor: small faults hide in averages over text.

Three checks that share no code with what they check: each rounded weight lies within half a step of the float one; the
file's bytes are those that were to be written; each expert of the graph computes, by itself, what its weights say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from ava_core.errors import ParityError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import BlockWeights, Stored
from ava_core.onnx.graph import CONTRIB, GRAPH_FILE, IR_VERSION, OPSET

HALF_STEP = 0.5 + 1e-3
"""Largest rounding error in steps between levels, with slack for float32 arithmetic."""
EXPERT_TOLERANCE = 0.05
"""Relative error of one expert's output, root mean square: rounding its input and hidden units to 8 bits takes 0.01."""
PROBE_TOKENS = 8


def verify_rounding(model: EnhancedMoEForCausalLM, rounded: Mapping[str, Stored]) -> None:
    """Hold every rounded weight against the float one.

    A weight may be off by half a step; by more only outwards at an end of the range, where few bits clip the largest
    weight of a block.

    Raises:
        ParityError: the first tensor with a weight that isn't, and where.
    """
    parameters = dict(model.named_parameters())
    for name, stored in rounded.items():
        weight = parameters[name].detach().float().numpy()
        if isinstance(stored, BlockWeights):
            wrong = _beyond_rounding(weight, stored)
        else:
            # float16: the spacing of its values, relative for normal ones, absolute for subnormal ones.
            wrong = np.abs(stored.astype(np.float32) - weight) > np.abs(weight) * 2**-10 + 2**-24
        if wrong.any():
            index = tuple(int(index) for index in np.argwhere(wrong)[0])
            described = f"expert {index[0]}, row {index[1]}" if len(index) == 3 else f"row {index[0]}"
            raise ParityError(
                f"{name}: {int(wrong.sum())} of {wrong.size} rounded weights aren't the nearest to the model's, the"
                f" first in {described}: {float(weight[index]):.4g} was rounded to {float(_values(stored)[index]):.4g}"
            )


def _values(stored: Stored) -> np.ndarray:
    return stored.dequantize() if isinstance(stored, BlockWeights) else stored.astype(np.float32)


def _beyond_rounding(weight: np.ndarray, stored: BlockWeights) -> np.ndarray:
    """Bool, of the weight's shape: off by more than half a step and not clipped at an end of the range."""
    inputs, top = weight.shape[-1], 2 ** (stored.bits - 1)
    scales = np.repeat(stored.scales, stored.block_size, axis=-1)[..., :inputs]
    steps = (weight - stored.dequantize()) / scales
    clipped_high = (stored.integers == top - 1) & (steps > 0) & (steps <= 1 + HALF_STEP)
    clipped_low = (stored.integers == -top) & (steps < 0) & (steps >= -1 - HALF_STEP)
    return (np.abs(steps) > HALF_STEP) & ~clipped_high & ~clipped_low | ~np.isfinite(steps)


def verify_file(folder: Path, digests: Mapping[str, str]) -> None:
    """Hold every tensor of the folder's model against the digest of what was to be written.

    Raises:
        ParityError: the first tensor whose bytes differ.
    """
    found = tensor_digests(folder)
    if missing := sorted(digests.keys() ^ found.keys()):
        raise ParityError(
            f"{folder / GRAPH_FILE}: {', '.join(missing)}: must be in the file if and only if it was written"
        )
    for name, digest in digests.items():
        if found[name] != digest:
            raise ParityError(f"{folder}: {name}: its bytes aren't those that were written: run `ava quantize` again")


def tensor_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, and of the graph around them under its file's name, as they lie in the folder."""
    graph_bytes = (folder / GRAPH_FILE).read_bytes()
    found = {GRAPH_FILE: hashlib.sha256(graph_bytes).hexdigest()}
    for tensor in onnx.load_model_from_string(graph_bytes).graph.initializer:
        data = tensor.raw_data
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = {entry.key: entry.value for entry in tensor.external_data}
            with (folder / location["location"]).open("rb") as file:
                file.seek(int(location["offset"]))
                data = file.read(int(location["length"]))
        found[tensor.name] = hashlib.sha256(data).hexdigest()
    return found


def verify_experts(folder: Path, rounded: Mapping[str, Stored]) -> float:
    """Run each expert of each QMoE node by itself and hold it against its dequantised weights.

    Returns:
        The largest relative error of an expert's outputs, root mean square.

    Raises:
        ParityError: an expert computes something else.
    """
    model = onnx.load(folder / GRAPH_FILE)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    worst = 0.0
    for node in model.graph.node:
        if node.op_type == "QMoE":
            at = node.name.removesuffix(".out")
            gate_up, down = rounded[f"{at}.gate_up_proj"], rounded[f"{at}.down_proj"]
            errors = _expert_errors(_alone(node, constants, makers), _values(gate_up), _values(down))
            expert = int(np.argmax(errors))
            if not errors[expert] <= EXPERT_TOLERANCE:
                raise ParityError(
                    f"{at}: expert {expert} of the exported graph is off by {errors[expert]:.3g} of its output's size,"
                    f" at most {EXPERT_TOLERANCE:g} is rounding: the ONNX export doesn't compute this model"
                )
            worst = max(worst, float(errors[expert]))
    return worst


def _alone(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], makers: dict[str, onnx.NodeProto]):
    """A session of this node alone, with the inputs x (T, D) and gates (T, N), which are both of QMoE's inputs for
    routing: the values that choose experts (1) and those that weight them (14)."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    names = ["x" if index == 0 else "gates" if index in (1, 14) else name for index, name in enumerate(node.input)]
    del copy.input[:]
    copy.input.extend(names)
    nodes = [makers[name] for name in names if name in makers]
    wanted = {name for made in nodes for name in made.input} | set(names)
    graph = helper.make_graph(
        [*nodes, copy],
        "expert",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "gates")],
        [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
        [constants[name] for name in sorted(wanted & constants.keys())],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _expert_errors(session, gate_up_NGD: np.ndarray, down_NDF: np.ndarray) -> np.ndarray:
    """Relative error of each expert's outputs on the same few tokens, (N,)."""
    N, _, D = gate_up_NGD.shape
    x_TD = np.random.default_rng(0).standard_normal((PROBE_TOKENS, D)).astype(np.float32)
    errors = np.zeros(N)
    for expert in range(N):
        gates_TN = np.zeros((PROBE_TOKENS, N), np.float32)
        gates_TN[:, expert] = 1
        found_TD = session.run(None, {"x": x_TD, "gates": gates_TN})[0]
        gate_TF, up_TF = np.split(x_TD @ gate_up_NGD[expert].T, 2, axis=1)
        expected_TD = (gate_TF / (1 + np.exp(-gate_TF)) * up_TF) @ down_NDF[expert].T
        size = np.sqrt(np.square(expected_TD).mean())
        errors[expert] = np.sqrt(np.square(found_TD - expected_TD).mean()) / max(size, np.finfo(np.float32).tiny)
    return errors
