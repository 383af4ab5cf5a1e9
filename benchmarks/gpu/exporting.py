"""The trained checkpoint on the device, and as ONNX graphs, each against PyTorch in float32 on the CPU.

The fused graph has weights in int8, as `ava quantize --scheme int8` would without calibration; the portable one has
them in float32. `ava_core.onnx.providers` chooses what runs a graph, and the figures name it; where there is CUDA's
provider, it runs the fused graph too.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from ava_core.config.hardware import PROVIDER
from ava_core.config.quantize import QuantizeConfig
from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError
from ava_core.onnx.export import export_onnx
from ava_core.onnx.fused_model import FusedCausalLM
from ava_core.onnx.providers import CUDA
from ava_core.onnx.runtime import OnnxCausalLM, load_onnx
from ava_core.quantization.bounds import EXPORT_ERROR
from ava_core.quantization.original import Original, load_original
from ava_core.quantization.parity import measure_parity
from ava_core.quantization.rounding import plan as choose_formats
from ava_core.quantization.rounding import round_model
from ava_core.training.process import prepare
from benchmarks.gpu.numerics import relative_error
from benchmarks.gpu.plan import Outcome, Plan

WINDOWS, LENGTH = 2, 128
"""Of the validation text, that are compared."""
DEVICE_BOUND = 1e-3
"""Relative error of all logits in float32 on a GPU, whose sums have another order."""
INT8_TOP1 = 0.9
"""Least share of tokens with the same likeliest next token; as `quantize.int8.min_top1_agreement`."""


def run(plan: Plan) -> Outcome:
    """Errors of the logits by graph and provider; faults: one above its bound, no model to export."""
    outcome = Outcome()
    if not plan.model.is_dir():
        outcome.faults.append("there is no trained model: the training failed")
        return outcome
    prepare(plan.threads, 0)
    original = load_original(plan.model)
    split = ShardedSplit.open(plan.shards, "validation")
    if plan.device == "cuda":
        outcome.figures["device_error"] = device_error(original, split)
        outcome.at_most("device_error", outcome.figures["device_error"], DEVICE_BOUND)
    for kind in ("int8, fused", "float32, portable"):
        folder = plan.folder / kind.replace(", ", "-")
        try:
            _export(original, split, folder, portable=kind.endswith("portable"))
            _measure(outcome, kind, load_onnx(folder, plan.threads), original, split)
            if _has_cuda() and outcome.figures[kind]["provider"] != CUDA:
                _measure(outcome, f"{kind}, by {CUDA}", _on_gpu(folder, plan.threads), original, split)
        except AvaError as error:  # the other graph is still of interest
            outcome.faults.append(f"{kind}: {error}")
    return outcome


@torch.no_grad()
def device_error(original: Original, split: ShardedSplit) -> float:
    """Relative error of the logits of the model on the GPU, in float32 as on the CPU."""
    tokens = torch.from_numpy(split.tokens[: WINDOWS * LENGTH].astype("int64")).view(WINDOWS, LENGTH)
    expected = original.model(tokens, use_cache=False).logits
    found = original.model.to("cuda")(tokens.to("cuda"), use_cache=False).logits.cpu()  # type: ignore[arg-type]
    original.model.to("cpu")  # type: ignore[arg-type]
    return relative_error(found, expected)


def _export(original: Original, split: ShardedSplit, folder: Path, *, portable: bool) -> None:
    folder.mkdir()
    config = QuantizeConfig(calibration_sequences=0, portable=portable)
    rounded = {}
    if not portable:
        rounded = round_model(original.model, choose_formats(original.model, "int8", config, split, LENGTH), config)
    export_onnx(original.model, folder, rounded=rounded, portable=portable, accuracy_level=0 if portable else 4)
    original.model.config.save_pretrained(folder)


def _measure(outcome: Outcome, kind: str, exported: OnnxCausalLM, original: Original, split: ShardedSplit) -> None:
    """Its figures, and a fault if it is further from the original than its bound."""
    session = exported.decoder.session if isinstance(exported, FusedCausalLM) else exported.session
    found = measure_parity(original.model, exported, split, sequence_length=LENGTH, sequences=WINDOWS)
    outcome.figures[kind] = {"provider": session.get_providers()[0], **asdict(found)}
    if kind.startswith("int8"):
        outcome.at_most(f"{kind}: other likeliest tokens", 1 - found.top1_agreement, 1 - INT8_TOP1)
    else:
        outcome.at_most(f"{kind}: mean absolute error of logits", found.mean_abs_error, EXPORT_ERROR)


def _has_cuda() -> bool:
    import onnxruntime

    return torch.cuda.is_available() and CUDA in onnxruntime.get_available_providers()


def _on_gpu(folder: Path, threads: int) -> OnnxCausalLM:
    os.environ[PROVIDER] = "cuda"
    try:
        return load_onnx(folder, threads)
    finally:
        del os.environ[PROVIDER]
