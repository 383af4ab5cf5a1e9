"""`ava import`: a model of another maker's becomes a model folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ava_core.cli.tool_command import Force, Output, Quiet, tool_request

TYPES = ("float32", "bfloat16")


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|hub:NAME[@REVISION]",
            help="OLMoE, Mixtral, Qwen3-MoE; dense Llama or Qwen3; a model of ours that another tool changed.",
        ),
    ],
    output: Output,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16; default: bfloat16 if all weights are, else float32.")
    ] = "",
    experts: Annotated[
        int | None,
        typer.Option(help="Of a dense model: experts per layer (sparse upcycling); 1: it stays dense.", min=1),
    ] = None,
    experts_per_token: Annotated[
        int | None, typer.Option(help="Experts that a token chooses; default: 2, times the granularity.", min=1)
    ] = None,
    granularity: Annotated[
        int, typer.Option(help="Cut each copy of the feed-forward network into so many experts.", min=1)
    ] = 1,
    noise: Annotated[
        float, typer.Option(help="Noise on each expert's matrices, as a multiple of their standard deviation.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the fresh router and the noise.", min=0)] = 1337,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; default: the source's.", min=1)
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens of evaluation's windows; default: the source's training, else at most 2048.", min=1),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make a model of another maker's a model folder that every step takes."""
    from ava_core.errors import ConfigError
    from ava_core.importing.importer import Import, ImportOptions, describe_options
    from ava_core.models.conversion import Upcycling
    from ava_core.runtime.tool import run_tool

    request = tool_request("import", output, force=force, quiet=quiet)
    if dtype and dtype not in TYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(TYPES)}")
    if experts is None and (experts_per_token is not None or granularity != 1 or noise):
        raise ConfigError("--experts-per-token, --granularity, --noise: say how a dense model gets --experts")
    upcycling = None
    if experts is not None:
        chosen = experts_per_token or min(2 * granularity, experts)
        upcycling = Upcycling(
            experts=experts, experts_per_token=chosen, granularity=granularity, noise=noise, seed=seed
        )
    importing = Import(
        source, ImportOptions(dtype=dtype, context=context, sequence_length=sequence_length, upcycling=upcycling)
    )
    request = replace(request, choices=describe_options(importing))
    run_tool(request, importing.inputs, lambda folder: importing.write(folder, request.progress))
    print(f"{request.output}: {importing.origin}")
    for change in importing.origin.changes:
        print(f"  {change}")
