"""`ava keys`: what decides each step's result beside its inputs, as files that DVC's stages depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.step_command import DEFAULT_WORK
from ava_core.steps.table import STEPS


def keys(
    output: Annotated[Path, typer.Option(help="Folder to write a STEP.json into for each step.")],
    params: Annotated[Path | None, typer.Option(help="Parameters, as params.yaml.")] = None,
    work: Annotated[
        Path, typer.Option(envvar="AVA_WORK", help="The work folder, for what was read of each source file.")
    ] = DEFAULT_WORK,
) -> None:
    """Write the digest of the code that can change each step's result, and the values that the step reads."""
    from ava_core.config import resolve
    from ava_core.runtime.code import code_of
    from ava_core.runtime.identity import values_read

    config = resolve(params=params).config
    output.mkdir(parents=True, exist_ok=True)
    for name, spec in STEPS.items():
        known = {"code": code_of(spec, work.absolute()).digest, "values": values_read(spec, config)}
        partial = output / f".{name}.partial"
        partial.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        partial.replace(output / f"{name}.json")
