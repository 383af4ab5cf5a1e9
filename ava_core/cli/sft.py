"""`ava sft`."""

from __future__ import annotations

from functools import partial

from ava_core.cli.from_model import compute_from_model, digest_rewards
from ava_core.cli.step_command import step_command
from ava_core.cli.train import run_where_asked

command = step_command(
    "sft", partial(compute_from_model, step="sft", shards="conversations"), digest_rewards("sft"), run_where_asked
)
