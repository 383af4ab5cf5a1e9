"""`ava preprocess --for sft`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli.step_command import Instead, flag_of, request_for, run_request

if TYPE_CHECKING:
    from ava_core.runtime.request import Request, StepRun

PURPOSES = ("pretraining", "sft")


def _compute(run: StepRun) -> None:
    from ava_core.alignment.prepare import prepare

    result = prepare(
        run.config.conversations,
        purpose="sft",
        shards=run.input("shards"),
        data=run.optional_input("data"),
        output=run.output,
        state=run.state,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


def _prepare(request: Request, flags: Mapping[str, Any]) -> None:
    from ava_core.data.sources import digest_opened, open_each
    from ava_core.errors import ConfigError

    if flags["for_"] not in PURPOSES[1:]:
        raise ConfigError(f"--for {flags['for_']}: must be one of {', '.join(PURPOSES[1:])}, or be left out")
    if flags["shards"] is None:
        raise ConfigError("--for sft: --shards is missing: give the output of `ava preprocess` that the model learned")
    sources, data = request.config.conversations.sources, next(iter(request.inputs["data"]), None)
    asked = request_for(
        "conversations",
        request,
        inputs={"data": request.inputs["data"], "shards": [flags["shards"].absolute()]},
        digest_inputs=lambda: {"data": digest_opened(open_each(sources, None, data))},
    )
    run_request(asked, _compute)


FOR = Instead(
    flag="for_",
    metavar="sft",
    help="Make shards of conversations instead, for `ava sft`, as the section conversations says; with --shards.",
    call=_prepare,
    options={
        "shards": flag_of(
            Path | None,
            None,
            "With --for: output of `ava preprocess`, whose tokenizer and splits the conversations get.",
        )
    },
)
