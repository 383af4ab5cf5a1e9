"""`ava record-outcome`: the pipeline's exit handler."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer


def record_outcome(
    status: Annotated[str, typer.Option(help="KFP's PipelineTaskFinalStatus as JSON.")],
    output: Annotated[Path, typer.Option(help="Folder to write outcome.json into.")],
    executor_output: Annotated[Path | None, typer.Option(help="File to write KFP's ExecutorOutput to.")] = None,
    executor_input: Annotated[
        str | None, typer.Option(help="KFP's ExecutorInput as JSON, which names that file on a cluster.")
    ] = None,
) -> None:
    """Record how a pipeline ended."""
    from ava_core.runtime import executor_output as executor_outputs
    from ava_core.runtime.outcome import Outcome
    from ava_core.tracking.recording import record_end_of_pipeline

    outcome = Outcome.parse(status)
    outcome.write(output.absolute())  # first: the server may be slow, and the pod's time limited
    if run_url := record_end_of_pipeline(outcome):
        outcome = replace(outcome, run_url=run_url)
        outcome.write(output.absolute())
    path = executor_outputs.wanted(executor_output, executor_input)
    if path is not None:
        metadata = {name: value or "" for name, value in asdict(outcome).items()}
        executor_outputs.write(path, {"outcome": (output.absolute(), metadata)})
    failure = f": {outcome.failed_task}: {outcome.message}" if outcome.failed_task else ""
    print(f"pipeline {outcome.state}{failure}")
