"""`ava export`: a trained model as OLMoE, Mixtral or Qwen3-MoE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TARGETS = ("olmoe", "mixtral", "qwen3_moe")


def export(
    model: Annotated[Path, typer.Option(help="Output folder of `ava train`.")],
    to: Annotated[str, typer.Option(help="olmoe, mixtral or qwen3_moe.")],
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Write a model as an architecture that other tools know; what that lacks is refused by name."""
    from ava_core.errors import ConfigError

    if to not in TARGETS:
        raise ConfigError(f"--to {to}: must be one of {', '.join(TARGETS)}")
    from ava_core.generation.exporting import export_model

    export_model(model, to, output)
    print(f"wrote {output}: {to}, float32 safetensors and the tokenizer")
