"""Writing a model as an ONNX folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ava_core import __version__
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import Stored
from ava_core.onnx.fused import FusedGraph
from ava_core.onnx.graph import GraphWriter
from ava_core.onnx.portable import PortableGraph
from ava_core.onnx.shape import GRAPH_FILE, GRAPH_KIND, SHAPE, WEIGHTS_FILE


def export_onnx(
    model: EnhancedMoEForCausalLM,
    folder: Path,
    *,
    rounded: Mapping[str, Stored] | None = None,
    portable: bool = False,
    accuracy_level: int = 0,
) -> dict[str, str]:
    """Write `model` to `folder` as model.onnx and model.onnx.data.

    Args:
        model: the float model.
        folder: an existing folder.
        rounded: matrices with rounded weights, by parameter; the others stay float32, as router, norms and the constant
            experts always do.
        portable: standard operators only, for any runtime; every expert is evaluated for every token.
        accuracy_level: attribute of the fused graph's MatMulNBits and QMoE: 0 keeps float32 activations where a kernel
            can, 4 lets them be quantised to int8.

    Returns:
        SHA-256 of each tensor and of the graph, by name, for `ava_core.quantization.verify.verify_file`.

    Raises:
        AvaError: the model has a part that the export doesn't know.
        ConfigError: its shapes don't fit the fused operators.
    """
    with GraphWriter(folder) as writer:
        kind = "portable" if portable else "fused"
        metadata = {"ava.version": __version__, GRAPH_KIND: kind}
        if portable:
            PortableGraph(model, writer, rounded or {}).build()
        else:
            graph = FusedGraph(model, writer, rounded or {}, accuracy_level)
            graph.build()
            metadata[SHAPE] = graph.shape().to_json()
        writer.save(
            model.config.model_type,
            f"A causal language model; see ava_core/onnx/{kind}.py for its inputs and outputs.",
            metadata,
        )
    return writer.digests


def onnx_bytes(folder: Path) -> int:
    """Bytes of the graph and its weights."""
    return sum((folder / name).stat().st_size for name in (GRAPH_FILE, WEIGHTS_FILE))
