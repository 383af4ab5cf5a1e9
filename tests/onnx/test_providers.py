"""Which execution provider runs a graph. No test needs a GPU: ONNX Runtime is told that it has CUDA's provider."""

import logging

import numpy as np
import onnxruntime
import pytest
import torch

from ava_core.config.hardware import PROVIDER, has_gpu, requested_provider
from ava_core.errors import AvaError, ConfigError
from ava_core.onnx import loading, providers
from ava_core.onnx.graph import GRAPH_FILE
from ava_core.onnx.providers import CPU, CUDA, CUDA_FIRST, open_session
from ava_core.onnx.runtime import load_onnx
from ava_core.onnx.session import DecoderSession

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def machine(monkeypatch):
    """Call it to say what ONNX Runtime has, whether there is a GPU, and what AVA_ONNX_PROVIDER asks for."""

    def has(*available: str, gpu: bool, asked: str = "auto") -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, CPU])
        monkeypatch.setattr(providers, "has_gpu", lambda: gpu)
        monkeypatch.setenv(PROVIDER, asked)

    return has


class Session:
    """What `make` makes: remembers the providers that it got."""

    def __init__(self, wanted):
        self.wanted = [provider if isinstance(provider, str) else provider[0] for provider in wanted]

    def get_providers(self):
        return self.wanted


@pytest.mark.parametrize(
    ("portable", "asked", "first"),
    [(True, "auto", CUDA), (True, "cuda", CUDA), (True, "cpu", CPU), (False, "auto", CPU), (False, "cuda", CUDA)],
)
def test_graphs_whose_operators_it_has_run_on_the_gpu(make_model, export, machine, caplog, portable, asked, first):
    export(make_model(), portable=portable)
    machine(CUDA, gpu=True, asked=asked)
    with caplog.at_level(logging.INFO):
        session = open_session(Session, export.folder / GRAPH_FILE)
    assert session.get_providers()[0] == first
    assert CPU in session.get_providers()
    if first == CUDA:
        assert f"on the GPU, by {CUDA}" in caplog.text
    elif asked == "auto":
        assert f"on the CPU: {CUDA} has GroupQueryAttention in half precision only" in caplog.text


def test_float32_stays_float32_on_the_gpu():
    assert CUDA_FIRST[0] == (CUDA, {"use_tf32": "0"})


@pytest.mark.parametrize(("available", "gpu"), [((), True), ((CUDA,), False)])
def test_without_a_provider_or_a_gpu_everything_runs_on_the_cpu(make_model, export, machine, available, gpu):
    original = make_model()
    export(original, portable=True)
    machine(*available, gpu=gpu)
    loaded = load_onnx(export.folder, threads=1)
    assert loaded.session.get_providers() == [CPU]
    assert torch.allclose(loaded(IDS).logits, original(IDS).logits, atol=1e-4)


def test_a_provider_that_does_not_start_leaves_the_graph_to_the_cpu(make_model, export, machine, caplog, capsys):
    # It isn't in this ONNX Runtime; with onnxruntime-gpu and no libcuda it is the same.
    original = make_model()
    export(original, portable=True)
    machine(CUDA, gpu=True)
    with pytest.warns(UserWarning, match="not in available provider names"):
        loaded = load_onnx(export.folder, threads=1)
    assert loaded.session.get_providers() == [CPU]
    assert f"on the CPU, for {CUDA} failed" in caplog.text
    assert capsys.readouterr().out == ""
    assert torch.allclose(loaded(IDS).logits, original(IDS).logits, atol=1e-4)


def test_a_provider_that_raises_leaves_the_graph_to_the_cpu(machine, tmp_path, caplog, monkeypatch):
    machine(CUDA, gpu=True)
    monkeypatch.setattr(providers, "_operators", lambda graph: set())

    def make(wanted):
        if wanted is CUDA_FIRST:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nmore")
        return Session(wanted)

    assert open_session(make, tmp_path / GRAPH_FILE).get_providers() == [CPU]
    assert "no CUDA-capable device is detected" in caplog.text and "more" not in caplog.text


@pytest.mark.parametrize(
    ("available", "gpu", "reason"),
    [((), True, "this ONNX Runtime has CPUExecutionProvider only"), ((CUDA,), False, "no GPU is visible")],
)
def test_what_is_asked_for_and_not_there_is_refused_in_one_line(make_model, export, machine, available, gpu, reason):
    export(make_model())
    machine(*available, gpu=gpu, asked="cuda")
    with pytest.raises(ConfigError, match=rf"^environment: AVA_ONNX_PROVIDER = cuda: {reason}") as caught:
        load_onnx(export.folder)
    assert "\n" not in str(caught.value)


def test_the_variable_has_three_values(monkeypatch):
    for value in ("auto", "cpu", "cuda"):
        monkeypatch.setenv(PROVIDER, value)
        assert requested_provider() == value
    monkeypatch.setenv(PROVIDER, "gpu")
    with pytest.raises(ConfigError, match="environment: AVA_ONNX_PROVIDER = 'gpu': must be one of auto, cpu, cuda"):
        requested_provider()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_not_there(monkeypatch, hidden):
    monkeypatch.setattr("ava_core.config.hardware._gpu_memories_gib", lambda: [80.0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not has_gpu()


class CopyingBinding:
    """A binding as it is with a GPU: inputs, but for the attention's, are copied when they are bound."""

    def __init__(self, binding):
        self._binding, self._copies = binding, []

    def bind_input(self, name, device, index, kind, shape, pointer):
        if name in ("input_ids", "logit_indices"):
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            copy = np.frombuffer((np.ctypeslib.ctypes.c_char * size).from_address(pointer), kind).copy()
            self._copies.append(copy)
            pointer = copy.ctypes.data
        self._binding.bind_input(name, device, index, kind, shape, pointer)

    def __getattr__(self, name):
        return getattr(self._binding, name)


class GpuSession:
    def __init__(self, session):
        self._session = session

    def get_providers(self):
        return [CUDA, CPU]

    def io_binding(self):
        return CopyingBinding(self._session.io_binding())

    def run_with_iobinding(self, binding):
        self._session.run_with_iobinding(binding._binding)

    def __getattr__(self, name):
        return getattr(self._session, name)


def test_decoding_reads_new_tokens_though_inputs_are_copied_when_they_are_bound(make_model, export):
    export(make_model(), 8)
    session = loading.load_graph(export.folder, 1)
    found = []
    for decoder in (DecoderSession(session), DecoderSession(GpuSession(session))):
        cache = decoder.cache(rows=1, capacity=16)
        logits = [decoder.run(IDS.numpy(), cache).copy()]
        for _ in range(5):
            logits.append(decoder.run(logits[-1].argmax(-1)[:, None], cache).copy())
        found.append(np.stack(logits))
    assert np.array_equal(*found)


def test_a_runtime_that_is_too_old_for_the_graph_is_named(make_model, export, monkeypatch):
    export(make_model())
    (export.folder / GRAPH_FILE).write_bytes(b"not one that it knows")
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    with pytest.raises(
        AvaError, match=r"ONNX Runtime 1\.31\.1 can't load it .* the fused graph needs 1\.32: install it"
    ):
        load_onnx(export.folder)
