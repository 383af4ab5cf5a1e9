"""An exported model on ONNX Runtime, as a Transformers model: `forward`, `generate`, a KV cache.

model = load_onnx(Path("out/int8"))
model.generate(**tokenizer("To be, or", return_tensors="pt"), max_new_tokens=32)
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import GenerationConfig

from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.models import EnhancedMoEConfig
from ava_core.onnx.fused_model import FusedCausalLM
from ava_core.onnx.loading import graph_kind, load_graph
from ava_core.onnx.onnx_model import OnnxCausalLM
from ava_core.onnx.portable_model import PortableCausalLM
from ava_core.onnx.session import DecoderSession

__all__ = ["OnnxCausalLM", "load_onnx"]


def load_onnx(folder: Path, threads: int = 0) -> OnnxCausalLM:
    """Load the output of `ava quantize`.

    Args:
        folder: holds model.onnx, model.onnx.data and config.json; generation_config.json is used if it is there.
        threads: CPU threads; 0: as many as ONNX Runtime chooses.

    Raises:
        AvaError: a file is missing, or ONNX Runtime refuses the graph.
        IntegrityError: a file is damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise AvaError(f"{folder / 'config.json'}: no such file: give the output folder of `ava quantize`")
    try:
        config = EnhancedMoEConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise IntegrityError(f"{folder / 'config.json'}: can't be read ({reason}): run `ava quantize` again") from error
    session = load_graph(folder, threads)
    model: OnnxCausalLM
    if graph_kind(session) == "fused":
        model = FusedCausalLM(
            config, DecoderSession(session), lambda: DecoderSession(load_graph(folder, threads, hidden=True))
        )
    else:
        model = PortableCausalLM(config, session, lambda: load_graph(folder, threads, hidden=True))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model
