"""`ava record-outcome`: the pipeline's exit handler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def record_outcome(
    status: Annotated[str, typer.Option(help="KFP's PipelineTaskFinalStatus as JSON.")],
    output: Annotated[Path, typer.Option(help="Folder to write outcome.json into.")],
    executor_output: Annotated[Path | None, typer.Option(help="Write KFP's ExecutorOutput here.")] = None,
    executor_input: Annotated[str | None, typer.Option(help="KFP's ExecutorInput, which says where instead.")] = None,
) -> None:
    """Record how a pipeline ended."""
    from ava_core.cli.recording import record_end_of_pipeline
    from ava_core.runtime import executor_output as executor_outputs
    from ava_core.runtime.outcome import Outcome

    outcome = Outcome.parse(status)
    outcome.write(output.absolute())
    record_end_of_pipeline(outcome)
    place = executor_outputs.wanted(executor_output, executor_input)
    if place is not None:
        metadata = {"state": outcome.state, "failed_task": outcome.failed_task or "", "message": outcome.message}
        executor_outputs.write(place, {"outcome": (output.absolute(), metadata)})
    failure = f": {outcome.failed_task}: {outcome.message}" if outcome.failed_task else ""
    print(f"pipeline {outcome.state}{failure}")
