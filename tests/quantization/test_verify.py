"""Planted faults: in the rounded weights, in their packing, and in the file."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from ava_core.errors import ParityError
from ava_core.onnx import packing
from ava_core.onnx.export import export_onnx
from ava_core.onnx.graph import GRAPH_FILE, WEIGHTS_FILE
from ava_core.quantization.verify import verify_experts, verify_file, verify_rounding
from tests.onnx.conftest import round_all

EXPERTS = "model.layers.1.moe.experts"


@pytest.fixture
def model(make_model):
    return make_model(num_ffn_experts=3, num_layers=2)


@pytest.fixture(params=[8, 4])
def rounded(request, model):
    return round_all(model, request.param, 16)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_sound_weights_files_and_experts_pass(model, tmp_path, bits, symmetric):
    sound = round_all(model, bits, 16, symmetric=symmetric)
    verify_rounding(model, sound)
    verify_file(tmp_path, export_onnx(model, tmp_path, rounded=sound, accuracy_level=4))
    assert 0 < verify_experts(tmp_path, sound) < 0.03


def drop_an_expert(integers, scales):
    integers[1] = 0


def swap_two_experts(integers, scales):
    for array in (integers, scales):
        array[[0, 2]] = array[[2, 0]]


def double_one_scale(integers, scales):
    scales[1, 5, 0] *= 2


def swap_gate_and_up(integers, scales):
    for array in (integers, scales):
        array[1] = np.roll(array[1], array.shape[1] // 2, axis=0)


def flip_a_bit(integers, scales):
    integers[2, 7, 3] ^= 1


@pytest.mark.parametrize("plant", [drop_an_expert, swap_two_experts, double_one_scale, swap_gate_and_up, flip_a_bit])
def test_fault_in_the_rounding_is_refused_by_tensor_and_index(model, rounded, plant):
    name = f"{EXPERTS}.gate_up_proj"
    sound = rounded[name]
    integers, scales = sound.integers.copy(), sound.scales.copy()
    plant(integers, scales)
    rounded[name] = replace(sound, integers=integers, scales=scales)
    with pytest.raises(ParityError, match=rf"{name}: \d+ of \d+ rounded weights aren't .* expert [0-2], row"):
        verify_rounding(model, rounded)


@pytest.mark.parametrize("bits", [8, 4])
def test_any_flipped_bit_of_an_integer_is_refused(model, bits):
    name = "model.layers.0.self_attn.o_proj.weight"
    sound = round_all(model, bits, 16)
    rng = np.random.default_rng(0)
    for _ in range(100):
        integers = sound[name].integers.copy()
        row, column, bit = (int(rng.integers(size)) for size in (*integers.shape, bits))
        top = 2 ** (bits - 1)
        integers[row, column] = ((int(integers[row, column]) + top) ^ (1 << bit)) - top
        with pytest.raises(ParityError, match="o_proj"):
            verify_rounding(model, {name: replace(sound[name], integers=integers)})


def test_any_flipped_bit_of_the_files_is_refused_by_name(model, rounded, tmp_path):
    digests = export_onnx(model, tmp_path, rounded=rounded)
    rng = np.random.default_rng(0)
    graph = onnx.load(tmp_path / GRAPH_FILE, load_external_data=False).graph
    tensors = [
        {entry.key: entry.value for entry in tensor.external_data} | {"name": tensor.name}
        for tensor in graph.initializer
        if tensor.external_data
    ]
    for _ in range(40):
        tensor = tensors[int(rng.integers(len(tensors)))]
        byte = int(tensor["offset"]) + int(rng.integers(int(tensor["length"])))
        with flipped(tmp_path / WEIGHTS_FILE, byte, int(rng.integers(8))), pytest.raises(ParityError) as caught:
            verify_file(tmp_path, digests)
        assert tensor["name"] in str(caught.value)
    (tmp_path / GRAPH_FILE).write_bytes((tmp_path / GRAPH_FILE).read_bytes().replace(b"MatMulNBits", b"MatMulNBitz"))
    with pytest.raises(ParityError, match=GRAPH_FILE):
        verify_file(tmp_path, digests)


class flipped:
    """One bit of a file, flipped inside the block."""

    def __init__(self, path, byte: int, bit: int) -> None:
        self.path, self.byte, self.bit = path, byte, bit

    def __enter__(self):
        data = bytearray(self.path.read_bytes())
        data[self.byte] ^= 1 << self.bit
        self.path.write_bytes(data)

    def __exit__(self, *_):
        self.__enter__()


def not_interleaved(weights):
    return weights


def experts_reversed(weights, **options):
    if len(weights.shape) == 3:
        weights = replace(weights, integers=weights.integers[::-1])
    return packing.pack(weights, **options)


def high_nibble_first(weights, **options):
    packed = packing.pack(weights, **options)
    return packed if weights.bits == 8 else (packed >> 4 | packed << 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("function", "fault"),
    [("interleave", not_interleaved), ("pack", experts_reversed), ("pack", high_nibble_first)],
)
def test_fault_in_the_packing_is_refused_by_the_expert(model, tmp_path, monkeypatch, function, fault):
    rounded = round_all(model, 4, 16)
    monkeypatch.setattr(f"ava_core.onnx.fused_mixture.{function}", fault)
    export_onnx(model, tmp_path, rounded=rounded)
    with pytest.raises(ParityError, match=r"experts: expert \d of the exported graph is off by"):
        verify_experts(tmp_path, rounded)


def test_an_expert_dropped_from_the_file_is_refused(model, tmp_path):
    rounded = round_all(model, 8, 16)
    export_onnx(model, tmp_path, rounded=rounded)
    loaded = onnx.load(tmp_path / GRAPH_FILE)
    (tensor,) = [each for each in loaded.graph.initializer if each.name == f"{EXPERTS}.down_proj.experts"]
    data = bytearray(tensor.raw_data)
    size = len(data) // 3
    data[size : 2 * size] = bytes([128]) * size
    tensor.raw_data = bytes(data)
    (tmp_path / GRAPH_FILE).write_bytes(loaded.SerializeToString())
    with pytest.raises(ParityError, match=f"{EXPERTS}: expert 1 of the exported graph is off by 1 of"):
        verify_experts(tmp_path, rounded)
