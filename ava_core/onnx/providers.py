"""Which execution provider of ONNX Runtime runs a graph: CUDA's where there is one that has the graph's operators, else
the CPU's. `AVA_ONNX_PROVIDER` asks for one of them: auto, cpu or cuda.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from ava_core.config.hardware import PROVIDER, has_gpu, requested_provider
from ava_core.errors import ConfigError, first_line

log = logging.getLogger(__name__)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Providers = list[str | tuple[str, dict[str, Any]]]
CPU_ALONE: Providers = [CPU]
CUDA_FIRST: Providers = [(CUDA, {"use_tf32": "0"}), CPU]
"""What CUDA's provider lacks runs on the CPU. Products in float32 stay what they are called: by default it rounds their
factors to TF32."""
HALF_PRECISION_ONLY = ("GroupQueryAttention", "QMoE")
"""Operators that CUDA's provider has in half precision alone; our graphs compute in float32. Each of these nodes would
run on the CPU, and what stands between them be copied to the GPU and back. (In half precision QMoE takes weights in
another order than the CPU's, and doesn't notice.) https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md
"""


def open_session(
    make: Callable[[Providers], onnxruntime.InferenceSession], graph: Path
) -> onnxruntime.InferenceSession:
    """The session that `make` makes with the providers that fit; with the CPU's if CUDA's can't be used after all.

    Args:
        make: makes it with the given providers, the first one preferred.
        graph: the file, to look for operators in.

    Raises:
        ConfigError: AVA_ONNX_PROVIDER is cuda, and there is none that can be used.
    """
    asked = requested_provider()
    reason = _against_cuda(graph, asked)
    if reason is None:
        try:
            session = make(CUDA_FIRST)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            reason = first_line(error)
        else:
            if CUDA in session.get_providers():
                log.info("onnx: %s: on the GPU, by %s", graph, CUDA)
                return session
            reason = "ONNX Runtime can't start it: a library of CUDA or cuDNN is missing or of another version"
        log.warning("onnx: %s: on the CPU, for %s failed: %s", graph, CUDA, reason)
    if asked == "cuda":
        raise ConfigError(f"environment: {PROVIDER} = cuda: {reason}: use auto, or cpu")
    return make(CPU_ALONE)


def _against_cuda(graph: Path, asked: str) -> str | None:
    """Why CUDA's provider isn't tried; None if it is."""
    if asked == "cpu":
        return f"{PROVIDER} = cpu"
    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        return f"this ONNX Runtime has {', '.join(available)} only: CUDA's is in the package onnxruntime-gpu"
    if not has_gpu():
        return "no GPU is visible"
    if asked == "auto" and (lacking := sorted(_operators(graph).intersection(HALF_PRECISION_ONLY))):
        reason = f"{CUDA} has {' and '.join(lacking)} in half precision only, and the graph computes in float32"
        log.info("onnx: %s: on the CPU: %s; with quantize.portable = true it would run on the GPU", graph, reason)
        return reason
    return None


def _operators(graph: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
