"""Name, tags and notes of the section `run`, as MLflow's tags and as a note beside an output."""

from __future__ import annotations

import json
from pathlib import Path

from ava_core.config.run import RunConfig
from ava_core.files import write_json

NOTES = "mlflow.note.content"
"""MLflow shows it as the run's description."""


def run_tags(run: RunConfig) -> dict[str, str]:
    """The tags of a run that were asked for, with its notes."""
    return {**run.tags, **({NOTES: run.notes} if run.notes else {})}


def labels_path(output: Path) -> Path:
    """`OUTPUT.run.json`, beside the output: what an output is called is no part of what it is."""
    return output.with_name(f"{output.name}.run.json")


def write_labels(output: Path, run: RunConfig) -> None:
    """Leave name, tags and notes beside an output that is there; what was left before by another run goes."""
    labels = {name: value for name, value in run.model_dump(include={"name", "tags", "notes"}).items() if value}
    if labels and output.is_dir():
        write_json(labels_path(output), labels)
    elif not labels:
        labels_path(output).unlink(missing_ok=True)


def read_labels(output: Path) -> RunConfig:
    """What `write_labels` left; nothing where there is no such file, or it is damaged."""
    try:
        return RunConfig.model_validate(json.loads(labels_path(output).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # pydantic's are ValueErrors
        return RunConfig()
