"""What onnxruntime-genai wants to know of a folder with the portable graph: genai_config.json.

The library describes its format at https://onnxruntime.ai/docs/genai/reference/config.html. The fused graph has inputs
that it doesn't feed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ava_core.data.tokenizer import load_tokenizer
from ava_core.files import write_json
from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.shape import GRAPH_FILE, SESSION_OPTIONS

GENAI_FILE = "genai_config.json"


def write_genai_config(folder: Path, config: EnhancedMoEConfig) -> None:
    """Write genai_config.json to `folder`, which holds the portable graph of a model and its tokenizer.

    Texts are greedy where the caller says nothing, and end where those of `ava generate` do.
    """
    tokenizer = load_tokenizer(folder)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    parts = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
    model: dict[str, Any] = {
        "type": "decoder",
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        **{name: token for name, token in special.items() if token is not None},
        "decoder": {
            "filename": GRAPH_FILE,
            "hidden_size": config.hidden_size,
            "head_size": config.head_dim,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "num_hidden_layers": config.num_layers,
            "session_options": SESSION_OPTIONS,
            "inputs": {
                **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
                **{f"past_{part}_names": name for part, name in parts.items()},
            },
            "outputs": {
                "logits": "logits",
                **{f"present_{part}_names": f"present.%d.{part}" for part in parts},
            },
        },
    }
    search = {"do_sample": False, "max_length": config.max_position_embeddings}
    write_json(folder / GENAI_FILE, {"model": model, "search": search})
