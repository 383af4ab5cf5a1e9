"""A training step on the tracking server while it runs.

Beside `ava_core.cli.train` and not in it: what is shown changes nothing of the step's output, so `ava_core.tracking`
doesn't enter its key.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ava_core.runtime.step import StepRun


def shown_live(run: StepRun) -> AbstractContextManager[Any]:
    """Shows the training inside the block, if the environment has a tracking address; for one process of all."""
    from ava_core.tracking.live import live_run

    return live_run(
        experiment=run.config.registry.experiment,
        parameters=run.config.model_dump(mode="json", by_alias=True),
        state=run.state,
    )
