"""A fused graph that lies in no folder: for a decoder of weights that change from one use to the next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.block_weights import Stored
from ava_core.onnx.fused import FusedGraph
from ava_core.onnx.graph import GraphWriter
from ava_core.onnx.loading import session_of
from ava_core.onnx.session import DecoderSession
from ava_core.onnx.shape import GRAPH_KIND, SHAPE


def decoder_of(
    model: EnhancedMoEForCausalLM, rounded: Mapping[str, Stored], threads: int, accuracy_level: int = 0
) -> DecoderSession:
    """The decoder, on the CPU, of a model as it is now.

    Args:
        model, rounded, accuracy_level: as `ava_core.onnx.export.export_onnx` has them.
        threads: CPU threads; 0: as many as ONNX Runtime chooses.

    Raises:
        AvaError: the model has a part that the graph doesn't know.
        ConfigError: its shapes don't fit the fused operators.
    """
    with GraphWriter(None) as writer:
        graph = FusedGraph(model, writer, rounded, accuracy_level)
        graph.build()
        writer.save(model.config.model_type, "", {GRAPH_KIND: "fused", SHAPE: graph.shape().to_json()})
    weights = np.frombuffer(writer.weights.getbuffer(), np.uint8)
    return DecoderSession(session_of(writer.serialized, weights, threads))
