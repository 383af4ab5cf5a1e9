"""`ava merge`: a base and an adapter become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.tool_command import Force, Output, Quiet, tool_request
from ava_core.steps.kinds import MODEL
from ava_core.steps.tools import makers


def merge(
    model: Annotated[Path, typer.Option(help="Model folder that the adapter was trained on; stays as it is.")],
    adapter: Annotated[
        Path, typer.Option(help="Adapter: a folder as `ava train` leaves it in its output, or as PEFT saves it.")
    ],
    output: Output,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Add an adapter's updates to the weights of its base, as a model folder of its own."""
    from ava_core.adapters.merging import Merge
    from ava_core.runtime.tool import run_tool

    request = tool_request("merge", output, force=force, quiet=quiet)
    merging = Merge.of(model, adapter, *makers(MODEL))
    run_tool(request, merging.inputs, merging.write)
    settings = merging.adapter.settings
    kind = "DoRA" if settings.use_dora else "LoRA"
    print(f"{request.output}: {model} ({merging.origin.digest[:12]}) with a {kind} of rank {settings.r}")
