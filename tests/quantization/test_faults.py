"""Faults planted into the exported files and into what is written: each is refused by the parameter's name."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from ava_core.errors import ParityError
from ava_core.onnx import packing
from ava_core.onnx.export import export_onnx
from ava_core.onnx.graph import GRAPH_FILE, WEIGHTS_FILE
from ava_core.quantization.readback import verify_weights
from ava_core.quantization.verify import verify_file
from tests.onnx.conftest import round_all

LAYER = "model.layers.1"
EXPERTS = f"{LAYER}.moe.experts"
GATE_UP = f"{EXPERTS}.gate_up_proj"


@pytest.fixture
def model(make_model):
    return make_model(num_ffn_experts=3, num_layers=2, num_shared_experts=1)


@pytest.mark.parametrize(
    ("bits", "symmetric", "portable"),
    [
        (8, True, False), (4, True, False), (8, False, False), (4, False, False), (32, True, False),
        (8, True, True), (4, True, True), (32, True, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": "projection", "router": "expert_bias"},
        {"qk_norm": "none", "tie_word_embeddings": False, "gating_residuals": False},
        {"num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0, "num_shared_experts": 1},
    ],
)
def test_sound_folder_of_either_kind_holds_the_models_weights(make_model, tmp_path, changes, bits, symmetric, portable):
    model = make_model(num_layers=2, **changes)
    rounded = round_all(model, bits, 16, symmetric=symmetric) if bits < 32 else {}
    if bits == 8:
        rounded[f"{LAYER}.self_attn.o_proj.weight"] = (
            model.state_dict()[f"{LAYER}.self_attn.o_proj.weight"].numpy().astype(np.float16)
        )
    export_onnx(model, tmp_path, rounded=rounded, portable=portable)
    verify_weights(tmp_path, model, rounded)


class Files:
    """An exported folder whose tensors can be edited as they lie there."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def edit(self, name: str, dtype: type, change: Callable[[np.ndarray], None]) -> None:
        loaded = onnx.load(self.folder / GRAPH_FILE, load_external_data=False)
        (tensor,) = [each for each in loaded.graph.initializer if each.name == name]
        if not tensor.external_data:
            values = np.frombuffer(bytearray(tensor.raw_data), dtype).reshape(*tensor.dims)
            change(values)
            tensor.raw_data = values.tobytes()
            (self.folder / GRAPH_FILE).write_bytes(loaded.SerializeToString())
            return
        location = {entry.key: entry.value for entry in tensor.external_data}
        data = bytearray((self.folder / WEIGHTS_FILE).read_bytes())
        offset, length = int(location["offset"]), int(location["length"])
        values = np.frombuffer(data[offset : offset + length], dtype).reshape(*tensor.dims)
        change(values)
        data[offset : offset + length] = values.tobytes()
        (self.folder / WEIGHTS_FILE).write_bytes(data)

    def edit_experts(self, change: Callable[[np.ndarray], None]) -> None:
        self.edit(f"{GATE_UP}.experts", np.uint8, change)

    def edit_scales(self, change: Callable[[np.ndarray], None]) -> None:
        """The upper halves of float32 values."""
        self.edit(f"{GATE_UP}.scales", np.uint16, change)


def drop_an_expert(files, bits):
    files.edit_experts(lambda packed: packed[1].fill(0x80 if bits == 8 else 0x88))


def swap_two_experts(files, bits):
    def swap(array):
        array[[0, 2]] = array[[2, 0]]

    files.edit_experts(swap)
    files.edit_scales(swap)


def double_the_scale_of_one_block(files, bits):
    def double(scales):
        scales[1, 5, 0] += 1 << 7  # the lowest bit of the exponent

    files.edit_scales(double)


def exchange_gate_and_up(files, bits):
    def exchange(array):
        array[1] = np.stack((array[1, 1::2], array[1, 0::2]), axis=1).reshape(array[1].shape)

    files.edit_experts(exchange)
    files.edit_scales(exchange)


def flip_the_lowest_bit_of_an_integer(files, bits):
    def flip(packed):
        packed[2, 7, 3] ^= 1

    files.edit_experts(flip)


def flip_the_lowest_bit_of_a_scale(files, bits):
    def flip(scales):
        scales[2, 7, 1] ^= 1

    files.edit_scales(flip)


FAULTS = [
    (drop_an_expert, r"[1, 0, "),
    (swap_two_experts, r"[0, 0, "),
    (double_the_scale_of_one_block, r"[1, "),
    (exchange_gate_and_up, r"[1, 0, "),
    (flip_the_lowest_bit_of_an_integer, r"[2, "),
    (flip_the_lowest_bit_of_a_scale, r"[2, "),
]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("plant", "index"), FAULTS)
def test_fault_in_the_files_is_refused_by_parameter_and_index(model, tmp_path, bits, plant, index):
    rounded = round_all(model, bits, 16)
    digests = export_onnx(model, tmp_path, rounded=rounded)
    plant(Files(tmp_path), bits)
    with pytest.raises(ParityError, match=re.escape(GATE_UP) + ".*, the first at " + re.escape(index)):
        verify_weights(tmp_path, model, rounded)
    with pytest.raises(ParityError):
        verify_file(tmp_path, digests)


@pytest.mark.parametrize(
    ("tensor", "dtype", "parameter"),
    [
        ("model.embed_tokens.weight.rows", np.uint8, "model.embed_tokens.weight"),
        ("model.embed_tokens.weight.scales", np.uint16, "model.embed_tokens.weight"),
        ("model.embed_tokens.weight.blocks", np.uint8, "model.embed_tokens.weight"),
        (f"{LAYER}.self_attn.qkv.weights.blocks", np.uint8, f"{LAYER}.self_attn.q_proj.weight"),
        (f"{LAYER}.self_attn.o_proj.weight.blocks", np.uint8, f"{LAYER}.self_attn.o_proj.weight"),
        (f"{EXPERTS}.down_proj.experts", np.uint8, f"{EXPERTS}.down_proj"),
        (f"{EXPERTS}.down_proj.zero_points", np.uint8, f"{EXPERTS}.down_proj"),
        (
            f"{LAYER}.moe.shared_experts.down_proj.weight.blocks",
            np.uint8,
            f"{LAYER}.moe.shared_experts.down_proj.weight",
        ),
        (f"{LAYER}.self_attn.qk_norm", np.uint32, f"{LAYER}.self_attn.q_norm.weight"),
        (f"{LAYER}.post_attention_layernorm.weight", np.uint32, f"{LAYER}.post_attention_layernorm.weight"),
        (f"{LAYER}.moe.gate.transposed", np.uint32, f"{LAYER}.moe.gate.weight"),
        (f"{LAYER}.moe.gate.residual_weight.transposed", np.uint32, f"{LAYER}.moe.gate.residual_weight"),
        (f"{LAYER}.moe.zero_computation.constants", np.uint32, f"{LAYER}.moe.zero_computation.constants"),
    ],
)
def test_one_flipped_bit_in_any_kind_of_tensor_is_refused_by_parameter(model, tmp_path, tensor, dtype, parameter):
    rounded = round_all(model, 4, 16, symmetric=False)
    export_onnx(model, tmp_path, rounded=rounded)

    def flip(values):
        values.reshape(-1)[0] ^= 1

    Files(tmp_path).edit(tensor, dtype, flip)
    with pytest.raises(ParityError, match=f"{re.escape(parameter)}: [0-9]+ of "):
        verify_weights(tmp_path, model, rounded)


@pytest.mark.parametrize("portable", [False, True])
def test_fault_between_rounding_and_writing_passes_the_digests_and_is_refused_all_the_same(model, tmp_path, portable):
    sound = round_all(model, 4, 16)
    integers = sound[GATE_UP].integers.copy()
    integers[1, 3, 5] ^= 1
    digests = export_onnx(
        model, tmp_path, rounded={**sound, GATE_UP: replace(sound[GATE_UP], integers=integers)}, portable=portable
    )
    verify_file(tmp_path, digests)
    with pytest.raises(ParityError, match=f"{re.escape(GATE_UP)}: 1 of "):
        verify_weights(tmp_path, model, sound)


def test_product_whose_rows_are_packed_in_another_order_is_refused(model, tmp_path, monkeypatch):
    rounded = round_all(model, 8, 16)
    monkeypatch.setattr("ava_core.onnx.fused_matrices.stack", lambda parts: packing.stack(parts[::-1]))
    digests = export_onnx(model, tmp_path, rounded=rounded)
    verify_file(tmp_path, digests)
    with pytest.raises(ParityError, match=r"layers\.0\.self_attn\.q_proj\.weight"):
        verify_weights(tmp_path, model, rounded)


def test_layers_whose_experts_are_connected_crosswise_are_refused(model, tmp_path):
    rounded = round_all(model, 8, 16)
    export_onnx(model, tmp_path, rounded=rounded)
    loaded = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False)
    first, second = [node for node in loaded.graph.node if node.op_type == "QMoE"]
    for position in (2, 3, 5, 6):
        first.input[position], second.input[position] = second.input[position], first.input[position]
    (tmp_path / GRAPH_FILE).write_bytes(loaded.SerializeToString())
    with pytest.raises(ParityError, match=r"layers\.0\.moe\.experts\.gate_up_proj: \d+ of "):
        verify_weights(tmp_path, model, rounded)


def test_parameter_that_no_node_uses_is_refused(model, tmp_path):
    export_onnx(model, tmp_path)
    loaded = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False)
    (node,) = [node for node in loaded.graph.node if node.name == f"{LAYER}.moe.gate.residual"]
    loaded.graph.node.remove(node)
    (tmp_path / GRAPH_FILE).write_bytes(loaded.SerializeToString())
    with pytest.raises(ParityError, match=f"no node uses {re.escape(LAYER)}.moe.gate.residual_weight"):
        verify_weights(tmp_path, model, {})
