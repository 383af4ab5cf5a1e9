"""What `ava preprocess --for` can make shards for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli import conversations, preferences, prompts
from ava_core.cli.step_command import request_for, run_request
from ava_core.cli.step_flags import Instead, flag_of

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.config.conversations import ConversationsConfig
    from ava_core.runtime.request import Request, StepRun


@dataclass(frozen=True)
class Purpose:
    """What shards can be made for.

    Attributes:
        step: of the step table, which makes them.
        section: of the configuration, that says of what.
        compute: makes them.
    """

    step: str
    section: Callable[[AvaConfig], ConversationsConfig]
    compute: Callable[[StepRun], None]


PURPOSES = {
    "sft": Purpose("conversations", lambda config: config.conversations, conversations.compute),
    "preference": Purpose("preferences", lambda config: config.preferences, preferences.compute),
    "prompts": Purpose("prompts", lambda config: config.prompts, prompts.compute),
}


def _prepare(request: Request, flags: Mapping[str, Any]) -> None:
    from ava_core.data.sources import digest_opened, open_each
    from ava_core.errors import ConfigError

    name = flags["for_"]
    if name not in PURPOSES:
        raise ConfigError(f"--for {name}: must be one of {', '.join(PURPOSES)}, or be left out")
    if flags["shards"] is None:
        raise ConfigError(
            f"--for {name}: --shards is missing: give the output of `ava preprocess` that the model learned"
        )
    if flags["model"] is not None and name != "preference":
        raise ConfigError("--model: means something only with --for preference")
    purpose = PURPOSES[name]
    sources, data = purpose.section(request.config).sources, next(iter(request.inputs["data"]), None)
    inputs = {"data": request.inputs["data"], "shards": [flags["shards"].absolute()]}
    if name == "preference":
        inputs["model"] = [flags["model"].absolute()] if flags["model"] else []
    asked = request_for(
        purpose.step,
        request,
        inputs=inputs,
        digest_inputs=lambda: {"data": digest_opened(open_each(sources, None, data))},
    )
    run_request(asked, purpose.compute)


FOR = Instead(
    flag="for_",
    metavar="|".join(PURPOSES),
    help="Make shards of conversations for `ava sft`, as the section conversations says, of pairs of answers for"
    " `ava reward` and `ava align`, as the section preferences says, or of prompts that a model answers and is rewarded"
    " for, as the section prompts says; with --shards.",
    call=_prepare,
    options={
        "shards": flag_of(
            Path | None,
            None,
            "With --for: output of `ava preprocess`, whose tokenizer and splits the conversations get.",
        ),
        "model": flag_of(
            Path | None,
            None,
            "With --for preference: model whose own answers are the worse ones, where there are no others.",
        ),
    },
)
