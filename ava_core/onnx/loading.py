"""An exported graph as a session of ONNX Runtime, and what its metadata say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ava_core.errors import AvaError, ConfigError, IntegrityError, first_line
from ava_core.onnx.providers import CPU_ALONE, Providers, open_session
from ava_core.onnx.shape import GRAPH_FILE, GRAPH_KIND, SESSION_OPTIONS, WEIGHTS_FILE

HIDDEN = "ava.hidden"
"""Metadata of a graph that gives hidden states: the name of that output."""
LOGITS = "logits"
FUSED_RUNTIME = (1, 32)
"""ONNX Runtime whose GroupQueryAttention has all inputs of the fused graph."""


def load_graph(folder: Path, threads: int = 0, *, hidden: bool = False) -> onnxruntime.InferenceSession:
    """The ONNX Runtime session of an exported model, on the provider that `ava_core.onnx.providers` chooses.

    Args:
        folder: holds the graph and its weights.
        threads: CPU threads; 0: as many as ONNX Runtime chooses.
        hidden: give the graph one more output, the hidden states that its head reads (`hidden_output`).

    Raises:
        AvaError: a file is missing, or this ONNX Runtime is too old.
        ConfigError: AVA_ONNX_PROVIDER asks for what isn't there.
        IntegrityError: a file is damaged.
    """
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise AvaError(f"{folder / name}: no such file: give the output folder of `ava quantize`")
    options = _options(threads)
    linked = any((folder / name).is_symlink() for name in (GRAPH_FILE, WEIGHTS_FILE))
    # Threads wait by spinning, ONNX Runtime's default: a token is a hundred small products, and waking a thread for
    # each halves the rate (cpu/small, 2 threads: 670 and 1,240 tokens/s), with PyTorch sampling between tokens as well.
    # Where other processes want the cores it is the other way round, by the same factor (11 and 23 of 60 products per
    # second): unlike OpenMP's, these threads soon let go, and a server is expected to have its cores.

    def make(providers: Providers) -> onnxruntime.InferenceSession:
        if linked or hidden:
            # ONNX Runtime follows no link out of a graph's folder, as DVC makes them with `cache.type symlink`, so it
            # is given the bytes.
            graph = _with_hidden_output(folder) if hidden else (folder / GRAPH_FILE).read_bytes()
            return _of_bytes(graph, np.memmap(folder / WEIGHTS_FILE, np.uint8, "r"), options, providers)
        # Else it prints to the standard output that it falls back, and does so by itself.
        return onnxruntime.InferenceSession(folder / GRAPH_FILE, options, providers=providers, enable_fallback=0)

    try:
        return open_session(make, folder / GRAPH_FILE)
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        version = onnxruntime.__version__
        reason = f"{folder / GRAPH_FILE}: ONNX Runtime {version} can't load it ({first_line(error)})"
        if tuple(map(int, version.split(".")[:2])) < FUSED_RUNTIME:
            needed = ".".join(map(str, FUSED_RUNTIME))
            raise AvaError(
                f"{reason}: the fused graph needs {needed}: install it, or quantise with quantize.portable = true"
            ) from error
        raise IntegrityError(f"{reason}: run `ava quantize` again") from error


def session_of(graph: bytes, weights: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """The session, on the CPU, of a graph that was never written to a folder.

    Args:
        graph: as a file has it.
        weights: uint8, the file beside it; the session copies what it needs.
        threads: CPU threads; 0: as many as ONNX Runtime chooses.
    """
    return _of_bytes(graph, weights, _options(threads), CPU_ALONE)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in SESSION_OPTIONS.items():
        options.add_session_config_entry(name, value)
    return options


def _of_bytes(
    graph: bytes, weights: np.ndarray, options: onnxruntime.SessionOptions, providers: Providers
) -> onnxruntime.InferenceSession:
    """A session of bytes, which are copied where a file would be mapped: a process then has weights of its own.

    `weights` must live until the session is made.
    """
    options.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [weights], [len(weights)])
    return onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)


def _with_hidden_output(folder: Path) -> bytes:
    import onnx

    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    head = next(node for node in model.graph.node if LOGITS in node.output)
    model.graph.output.append(onnx.helper.make_tensor_value_info(head.input[0], onnx.TensorProto.FLOAT, None))
    entry = model.metadata_props.add()
    entry.key, entry.value = HIDDEN, head.input[0]
    return model.SerializeToString()


def hidden_output(session: onnxruntime.InferenceSession) -> str:
    """The output with the hidden states that the head reads, after the last norm; empty if the graph gives none."""
    return session.get_modelmeta().custom_metadata_map.get(HIDDEN, "")


def graph_kind(session: onnxruntime.InferenceSession) -> str:
    """Which graph it is, fused or portable."""
    return session.get_modelmeta().custom_metadata_map.get(GRAPH_KIND, "portable")
