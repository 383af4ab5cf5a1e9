"""`ava preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.clean_part import PART
from ava_core.cli.purposes import FOR
from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.runtime.request import StepRun


def _digest_inputs(config: AvaConfig, inputs: dict[str, list[Path]]) -> dict[str, str]:
    from ava_core.data.finished_tokenizer import digest_tokenizer
    from ava_core.data.sources import digest_sources

    digests = {"data": digest_sources(config.data, next(iter(inputs["data"]), None))}
    if inputs["tokenizer"]:
        digests["tokenizer"] = digest_tokenizer(inputs["tokenizer"][0])
    return digests


def _compute(run: StepRun) -> None:
    from ava_core.data.preprocess import preprocess

    result = preprocess(
        run.config.data,
        run.config.tokenizer,
        data=run.optional_input("data"),
        output=run.output,
        state=run.state,
        progress=run.progress,
        tokenizer=run.optional_input("tokenizer"),
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("preprocess", _compute, _digest_inputs, instead=(PART, FOR))
