"""`ava index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from pathlib import Path

    from ava_core.config import AvaConfig
    from ava_core.runtime.request import StepRun


def _digest_inputs(config: AvaConfig, inputs: dict[str, list[Path]]) -> dict[str, str]:
    from ava_core.retrieval.documents import digest_documents

    digest = digest_documents(config.retrieval, next(iter(inputs["data"]), None))
    return {} if digest is None else {"data": digest}


def _compute(run: StepRun) -> None:
    from ava_core.retrieval.build import build_index

    result = build_index(
        run.config.retrieval,
        shards=run.input("shards"),
        data=run.optional_input("data"),
        model=run.optional_input("model"),
        previous=run.optional_input("previous"),
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("index", _compute, _digest_inputs)
