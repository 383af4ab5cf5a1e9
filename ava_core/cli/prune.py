"""`ava prune`: a model with fewer experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.tool_command import Force, Output, Quiet, tool_request


def prune(
    model: Annotated[Path, typer.Option(help="Model folder.")],
    shards: Annotated[Path, typer.Option(help="Output folder of `ava preprocess`: text to calibrate on and measure.")],
    output: Output,
    experts: Annotated[int | None, typer.Option(help="FFN experts that each layer keeps.")] = None,
    share: Annotated[float | None, typer.Option(help="Or the share of them that goes, such as 0.25.")] = None,
    by: Annotated[str, typer.Option(help="load: the least chosen go; effect: those least missed.")] = "load",
    repair: Annotated[str, typer.Option(help="refit: the others are refitted by least squares; none.")] = "refit",
    sequences: Annotated[int, typer.Option(help="Windows of the text to calibrate on, and to measure.", min=1)] = 64,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Remove experts from every layer of a model, by their load or their effect, and repair what is left."""
    from ava_core.config.threads import limit_threads
    from ava_core.files import parse_json
    from ava_core.remaking.pruning import Pruning, PruningOptions
    from ava_core.runtime.inputs import verify_inputs
    from ava_core.runtime.tool import run_tool

    folders = {"model": [model.absolute()], "shards": [shards.absolute()]}
    request = tool_request("prune", output, force=force, quiet=quiet, inputs=folders, threads=0)
    limit_threads(request.threads)
    inputs = verify_inputs(request)
    options = PruningOptions(experts=_left(model, experts, share), by=by, repair=repair, sequences=sequences)
    pruning = Pruning(model.absolute(), shards.absolute(), options)
    request = replace(request, choices=pruning.choices)
    run_tool(request, inputs, lambda folder: pruning.write(folder, request.progress))
    figures = parse_json((request.output / "metrics.json").read_bytes())
    print(
        f"{request.output}: bits per byte {figures['validation_bits_per_byte_whole']:.4f} before,"
        f" {figures['validation_bits_per_byte_pruned']:.4f} pruned, {figures['validation_bits_per_byte']:.4f} repaired"
    )


def _left(model: Path, experts: int | None, share: float | None) -> int:
    """Experts that are left of each layer."""
    from ava_core.config.inheritance import read_architecture
    from ava_core.errors import ConfigError

    if (experts is None) == (share is None):
        raise ConfigError("--experts, --share: give one of them: how many experts stay, or which share of them goes")
    if experts is not None:
        return experts
    assert share is not None
    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: must be between 0 and 1")
    have = int(read_architecture(model)["num_ffn_experts"])
    if not (gone := round(share * have)):
        raise ConfigError(f"--share {share:g}: is less than one of the {have} FFN experts of a layer: give more")
    return have - gone
