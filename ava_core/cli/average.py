"""`ava average`: the mean of finished models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.tool_command import Force, Output, Quiet, tool_request


def average(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL MODEL...", help="Model folders of one architecture and tokenizer.")
    ],
    output: Output,
    method: Annotated[str, typer.Option(help="soup: the weighted mean; slerp: the arc between two.")] = "soup",
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="A share for each model; they sum to 1. Default: equal shares."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make the mean of finished models: a soup of several, or a point on the arc between two."""
    from ava_core.remaking.averaging import Averaging
    from ava_core.runtime.inputs import verify_inputs
    from ava_core.runtime.tool import run_tool

    folders = [path.absolute() for path in models]
    request = tool_request("average", output, force=force, quiet=quiet, inputs={"models": folders})
    inputs = verify_inputs(request)
    averaging = Averaging(folders, method, None if weights is None else _shares(weights))
    request = replace(request, choices=averaging.choices)
    run_tool(request, inputs, lambda folder: averaging.write(folder, request.progress))


def _shares(text: str) -> list[float]:
    from ava_core.errors import ConfigError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text}: must be numbers with commas between them, such as 0.7,0.3") from None
