"""What the machine has: its GPU, versions, and which packages the other parts would miss."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ava_core import kernels
from benchmarks import hardware
from benchmarks.gpu.plan import Outcome, Plan

NEEDED = ("datasets", "deepspeed", "onnx", "onnxruntime", "pydantic", "safetensors", "tokenizers", "transformers")
"""Modules without which a part fails, and without telling all of them at once. `benchmarks.gpu.wheels` carries them."""
TOLD = (*NEEDED, "numpy", "triton", "onnxruntime-gpu")


def run(plan: Plan) -> Outcome:
    """Versions, the GPU, ONNX Runtime's providers; faults: no GPU, one without bfloat16, a package is missing."""
    outcome = Outcome(figures=hardware.describe("cpu", plan.threads))
    outcome.figures |= {"python": platform.python_version(), "versions": _versions()}
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        outcome.faults.append(
            f"missing: {', '.join(missing)}: install them, or carry them there: python -m benchmarks.gpu.wheels"
        )
    if "onnxruntime" not in missing:
        import onnxruntime

        outcome.figures["onnx_providers"] = onnxruntime.get_available_providers()
    if plan.device == "cpu":
        outcome.figures["kernels"] = kernels.library.path()
    elif not torch.cuda.is_available():
        outcome.faults.append(f"torch {torch.__version__} sees no GPU: use a build with CUDA, or --device cpu --tiny")
    else:
        outcome.figures["gpu"] = _gpu()
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            outcome.faults.append(f"{torch.cuda.get_device_name()} has no bfloat16 products")
    return outcome


def _gpu() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "count": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
