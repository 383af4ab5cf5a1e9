"""What the commands of `ava_core.steps.tools` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_core.steps.tools import TOOLS

if TYPE_CHECKING:
    from ava_core.runtime.request import Request

Output = Annotated[Path, typer.Option(help="Model folder to write; appears whole or not at all.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def tool_request(
    name: str,
    output: Path,
    *,
    force: bool,
    quiet: bool,
    inputs: Mapping[str, list[Path]] | None = None,
    threads: int = 1,
) -> Request:
    """What a tool is asked for, but for its choices; from here on its log goes beside the output.

    Args:
        name: of the tool.
        output: folder to write.
        force: replace an output that exists.
        quiet: no progress bars.
        inputs: folders that it reads, by input.
        threads: as in the configuration; 0: all cores.
    """
    from ava_core.config import AvaConfig
    from ava_core.progress import Progress
    from ava_core.runtime import logs
    from ava_core.runtime.request import Request

    output = output.absolute()
    logs.configure(file=output.with_name(f"{output.name}.log"))
    return Request(
        spec=TOOLS[name],
        config=AvaConfig(threads=threads),
        inputs=inputs or {},
        choices={},
        output=output,
        work=output.parent,
        force=force,
        progress=Progress(quiet=quiet),
    )
