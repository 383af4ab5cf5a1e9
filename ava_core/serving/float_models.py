"""Decoders of float weights, for a model folder and for adapters of it: exported when the server starts.

Each holds the model's weights in float32 once. The graph lies in a folder of its own only until it is loaded.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from ava_core.adapters.folder import read_adapter
from ava_core.adapters.layers import merge_adapter
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.export import export_onnx
from ava_core.onnx.session import DecoderSession
from ava_core.onnx.shape import GRAPH_FILE
from ava_core.quantization.original import load_original
from ava_core.runtime import manifest


def float_decoder(folder: Path, threads: int) -> DecoderSession:
    """The decoder of a model folder.

    Raises:
        AvaError: a file is missing, or the fused graph can't have such a model.
        IntegrityError: a file is damaged.
    """
    return _decoder(load_original(folder).model, threads)


def adapted_decoder(folder: Path, adapter: Path, threads: int) -> DecoderSession:
    """The decoder of a model folder with an adapter of it.

    Raises:
        ConfigError: the folder holds quantised weights.
        AvaError: the adapter is of another model, or doesn't fit; otherwise as `float_decoder`.
    """
    require_float(folder, adapter)
    found = read_adapter(adapter)
    found.require_base(folder, manifest.read(folder).digest)
    model = load_original(folder).model
    found.put_into(model)
    merge_adapter(model)
    return _decoder(model.eval(), threads)


def require_float(folder: Path, adapter: Path) -> None:
    """Refuse quantised weights, which have no place for an update.

    Raises:
        ConfigError: the folder holds some.
    """
    if (folder / GRAPH_FILE).is_file():
        raise ConfigError(
            f"--adapter {adapter}: {folder} holds rounded weights, which have no place for an update: serve the model"
            " folder itself, or `ava merge` both, quantise that and serve it by its own name"
        )


def _decoder(model: EnhancedMoEForCausalLM, threads: int) -> DecoderSession:
    with tempfile.TemporaryDirectory(prefix="ava-serve-") as name:
        export_onnx(model, Path(name))
        del model
        gc.collect()
        return DecoderSession.load(Path(name), threads)
