"""`ava evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.runtime.request import StepRun


def task_files(config: AvaConfig) -> dict[str, str]:
    """Digest of the files that `evaluate.tasks` names; nothing where it names none."""
    if not any(entry.path for entry in config.evaluate.tasks):
        return {}
    from ava_core.tasks.yaml_task import digest_files

    return digest_files(config.evaluate.tasks, "evaluate.tasks")


def _digest_inputs(config: AvaConfig, inputs: dict[str, list[Path]]) -> dict[str, str]:
    return task_files(config)


def _compute(run: StepRun) -> None:
    from ava_core.evaluation.evaluate import evaluate

    result = evaluate(
        config=run.config.evaluate,
        seed=run.config.seed,
        model=run.input("model"),
        shards=run.input("shards"),
        quantized=run.inputs["quantized"],
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("evaluate", _compute, _digest_inputs)
