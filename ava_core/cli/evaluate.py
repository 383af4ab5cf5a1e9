"""`ava evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.step_command import step_command

if TYPE_CHECKING:
    from ava_core.config import AvaConfig
    from ava_core.runtime.request import StepRun


def files_read(config: AvaConfig) -> dict[str, str]:
    """Digests of the files that `evaluate` names: tasks, references; nothing where it names none."""
    digests: dict[str, str] = {}
    if any(entry.path for entry in config.evaluate.tasks):
        from ava_core.tasks.yaml_task import digest_files

        digests |= digest_files(config.evaluate.tasks, "evaluate.tasks")
    references = config.evaluate.continuations.references
    if references is not None:
        digests["references"] = _digest(references, "evaluate.continuations.references")
    questions = config.evaluate.retrieval.questions
    if questions is not None:
        digests["questions"] = _digest(questions, "evaluate.retrieval.questions")
    return digests


def _digest(path: str, setting: str) -> str:
    from ava_core.errors import ConfigError
    from ava_core.runtime.digests import digest_file

    if not Path(path).is_file():
        raise ConfigError(f"{setting} = {path}: no such file")
    return digest_file(Path(path))


def _digest_inputs(config: AvaConfig, inputs: dict[str, list[Path]]) -> dict[str, str]:
    return files_read(config)


def compute(run: StepRun) -> None:
    """Do the step's work."""
    from ava_core.evaluation.evaluate import evaluate

    result = evaluate(
        config=run.config.evaluate,
        seed=run.config.seed,
        model=run.input("model"),
        shards=run.input("shards"),
        quantized=run.inputs["quantized"],
        index=run.optional_input("index"),
        output=run.output,
        state=run.state,
        threads=run.threads,
        progress=run.progress,
    )
    run.metrics.update(result.metrics)
    run.timings.update(result.timings)


command = step_command("evaluate", compute, _digest_inputs)
