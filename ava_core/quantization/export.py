"""Writing a model as an ONNX folder, with float32, int8 or int4 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ava_core import __version__
from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.quantization.blockwise import BITS, quantize_blocks
from ava_core.quantization.decoder import DecoderGraph
from ava_core.quantization.graph import GRAPH_FILE, WEIGHTS_FILE, GraphWriter


def export_onnx(model: EnhancedMoEForCausalLM, folder: Path, *, scheme: str = "float32", block_size: int = 32) -> None:
    """Write `model` to `folder` as model.onnx and model.onnx.data.

    Rounded are the embedding, the head, the attention's projections and all experts' matrices. Router, norms, and the
    vectors and mixing weights of the constant experts (together below one percent) stay float32.

    Args:
        model: the float model.
        folder: an existing folder.
        scheme: float32, int8 or int4.
        block_size: weights that share one scale.

    Raises:
        AvaError: the scheme is unknown, or the model has a part that the export doesn't know.
    """
    if scheme != "float32" and scheme not in BITS:
        raise AvaError(f"scheme = {scheme}: must be one of float32, {', '.join(BITS)}")
    with GraphWriter(folder) as writer:

        def add_matrix(name: str, weight_OI: np.ndarray) -> str:
            if scheme == "float32":
                return writer.constant(name, np.ascontiguousarray(weight_OI))
            return writer.block_weights(name, quantize_blocks(weight_OI, BITS[scheme], block_size))

        DecoderGraph(model, writer, add_matrix).build()
        writer.save(
            model.config.model_type,
            "A causal language model; see ava_core/quantization/decoder.py for its inputs and outputs.",
            {"ava.version": __version__, "ava.scheme": scheme, "ava.block_size": str(block_size)},
        )


def onnx_bytes(folder: Path) -> int:
    """Bytes of the graph and its weights."""
    return sum((folder / name).stat().st_size for name in (GRAPH_FILE, WEIGHTS_FILE))
