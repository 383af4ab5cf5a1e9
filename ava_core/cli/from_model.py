"""What the commands of trainings that begin from a model have in common; in the key it counts as each one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.named_inputs import architecture_of
from ava_core.cli.train import run_training

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.runtime.request import StepRun


def compute_from_model(run: StepRun, *, step: str, shards: str) -> None:
    """Train what begins from a model.

    Args:
        run: of the step.
        step: its name in the step table, whose `training` is the section of its settings.
        shards: name of the input that is trained on.
    """
    from ava_core.training.request import TrainRequest

    model: Path = run.input("model")
    run_training(
        run,
        TrainRequest(
            step=step,
            model_config=architecture_of(model),
            train_config=getattr(run.config, step),
            seed=run.config.seed,
            shards=run.input(shards),
            output=run.output,
            state=run.state,
            threads=run.threads,
            init=model,
            work=run.work,
            code=run.code,
            kept=run.kept / "checkpoints",
        ),
    )


def digest_rewards(section: str) -> Callable[[AvaConfig, dict[str, list[Path]]], dict[str, str]]:
    """Digests of users' reward functions and of reward models, which their names say nothing of.

    Args:
        section: with `rewards`.
    """

    def digests(config: AvaConfig, inputs: dict[str, list[Path]]) -> dict[str, str]:
        from ava_core.alignment.rewards.functions import digest_of, find_reward

        entries = getattr(config, section).rewards
        found = {entry.function: digest_of(find_reward(entry)) for entry in entries if entry.function is not None}
        for entry in entries:
            if entry.model is not None:
                from ava_core.alignment.rewards.reward_model import digest_of_model

                # Not by its label: the input `model` is another.
                found["reward_model"] = digest_of_model(Path(entry.model))
        return found

    return digests
