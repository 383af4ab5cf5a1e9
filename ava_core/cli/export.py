"""`ava export`: a trained model as OLMoE, Mixtral or Qwen3-MoE, or as GGUF for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TARGETS = ("olmoe", "mixtral", "qwen3_moe", "gguf")


def export(
    model: Annotated[Path, typer.Option(help="Model folder, as `ava train` or `ava import` leaves it.")],
    to: Annotated[str, typer.Option(help="olmoe, mixtral, qwen3_moe or gguf.")],
    output: Annotated[Path, typer.Option(help="Folder to write, or file for gguf; must not exist.")],
    llama_cpp: Annotated[
        Path | None, typer.Option(help="For gguf: llama.cpp's source, whose converter is run.", show_default=False)
    ] = None,
    gguf_type: Annotated[str, typer.Option(help="For gguf: f32, f16, bf16 or q8_0.")] = "f16",
) -> None:
    """Write a model as an architecture that other tools know; what that lacks is refused by name."""
    from ava_core.errors import ConfigError
    from ava_core.runtime import logs

    logs.configure()
    if to not in TARGETS:
        raise ConfigError(f"--to {to}: must be one of {', '.join(TARGETS)}")
    if (to == "gguf") != (llama_cpp is not None):
        raise ConfigError("--llama-cpp: give it with --to gguf, and only there")
    if llama_cpp is None:
        from ava_core.exporting.transformers_folder import export_model

        export_model(model, to, output)
        print(f"wrote {output}: {to}, float32 safetensors and the tokenizer")
        return
    from ava_core.exporting.gguf import TYPES, export_gguf

    if gguf_type not in TYPES:
        raise ConfigError(f"--gguf-type {gguf_type}: must be one of {', '.join(TYPES)}")
    architecture = export_gguf(model, output, llama_cpp, gguf_type)
    print(f"wrote {output}: {architecture} as GGUF, {gguf_type}, {output.stat().st_size / 1e6:.2f} MB")
