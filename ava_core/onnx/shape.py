"""Sizes that a session needs to run a fused graph. They are kept in its metadata, because reading the model's
configuration would take an import of Transformers, and with it seconds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ava_core.files import parse_json

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
GRAPH_KIND = "ava.graph"
"""Metadata: fused or portable."""
SHAPE = "ava.decoder"
"""Metadata of a fused graph: its `DecoderShape` as JSON."""
SESSION_OPTIONS = {"session.disable_quant_qdq": "1"}
"""Of ONNX Runtime, for a portable graph with rounded weights: fold every DequantizeLinear into a float32 weight.

Kept in the graph, the whole matrix is dequantised at each token: 4 to 8 ms per million weights against 0.1 ms for the
product itself.
"""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder, and names of its outputs.

    Attributes:
        router_outputs: per layer, the outputs with its router's logits and gate values.
    """

    num_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    max_position_embeddings: int
    router_outputs: tuple[tuple[str, str], ...]

    def to_json(self) -> str:
        """For the metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DecoderShape:
        """From the metadata.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        values = parse_json(text)
        outputs = tuple((logits, weights) for logits, weights in values.pop("router_outputs"))
        return cls(**values, router_outputs=outputs)
