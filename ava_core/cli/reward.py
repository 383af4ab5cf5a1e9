"""`ava reward`."""

from __future__ import annotations

from functools import partial

from ava_core.cli.from_model import compute_from_model
from ava_core.cli.step_command import step_command
from ava_core.cli.train import run_where_asked

command = step_command(
    "reward", partial(compute_from_model, step="reward", shards="preferences"), runner=run_where_asked
)
