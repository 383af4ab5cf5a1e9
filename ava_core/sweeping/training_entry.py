"""Where in the work folder a training keeps its history while it runs."""

from __future__ import annotations

from pathlib import Path

from ava_core.config import AvaConfig
from ava_core.runtime.identity import identify
from ava_core.runtime.inputs import verify_inputs
from ava_core.runtime.request import Request
from ava_core.runtime.work import Entry, WorkStore
from ava_core.steps.table import STEPS


def training_entry(config: AvaConfig, shards: Path, output: Path, work: Path) -> Entry:
    """The entry of `ava train` with these arguments, by the step's key.

    Raises:
        AvaError: the shards are damaged, or none.
    """
    spec = STEPS["train"]
    request = Request(spec=spec, config=config, inputs={"shards": [shards]}, choices={}, output=output, work=work)
    return WorkStore(work).entry(spec.name, identify(request, verify_inputs(request)).key)
