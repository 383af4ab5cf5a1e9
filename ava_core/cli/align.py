"""`ava align --method dpo|grpo`."""

from __future__ import annotations

from functools import partial

from ava_core.cli.from_model import compute_from_model, digest_rewards
from ava_core.cli.step_command import methods_command
from ava_core.cli.train import run_where_asked

command = methods_command(
    "How the model is aligned.",
    {
        "dpo": partial(compute_from_model, step="dpo", shards="preferences"),
        "grpo": partial(compute_from_model, step="grpo", shards="prompts"),
    },
    {"dpo": digest_rewards("dpo"), "grpo": digest_rewards("grpo")},
    run_where_asked,
)
