"""The files of a run: the report, what it was made from, samples to read, and the whole configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ava_core.config import to_yaml
from ava_core.errors import IntegrityError
from ava_core.files import write_json
from ava_core.registry.candidate import Candidate

# Input folder, file in it, path among the run's artifacts. `ava evaluate` always writes the first two.
REQUIRED = (("evaluation", "report.html", "report.html"), ("evaluation", "evaluation.json", "evaluation.json"))
OPTIONAL = (
    ("model", "history.csv", "training/history.csv"),
    ("model", "validation.csv", "training/validation.csv"),
    ("model", "loss.png", "training/loss.png"),
    ("model", "training.json", "training/training.json"),
    ("model", "origin.json", "origin.json"),
    ("model", "experts.jsonl", "training/experts.jsonl"),
    ("model", "samples.jsonl", "training/samples.jsonl"),
)


def write_run_files(folder: Path, candidate: Candidate, resolved: Mapping[str, Any]) -> None:
    """Write a run's artifacts into the new folder `folder`, laid out as they shall appear in MLflow.

    Raises:
        IntegrityError: the evaluation lacks a file that `ava evaluate` always writes.
    """
    folder.mkdir()
    origins = {"evaluation": candidate.evaluation, "model": candidate.model}
    for origin, name, path in (*REQUIRED, *OPTIONAL):
        source = origins[origin] / name
        if source.is_file():
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / path)
        elif (origin, name, path) in REQUIRED:
            raise IntegrityError(f"{source}: is missing: run `ava evaluate` again")
    manifests = folder / "manifests"
    manifests.mkdir()
    for name, contents in candidate.manifests.items():
        write_json(manifests / f"{name}.json", asdict(contents))
    (folder / "samples.txt").write_text(_samples(candidate.evaluation / "evaluation.json"))
    (folder / "params.yaml").write_text(to_yaml(resolved))


def _samples(path: Path) -> str:
    """The samples as text, for MLflow shows text and no JSON lists."""
    try:
        samples = json.loads(path.read_text()).get("samples", [])
        return "\n\n".join(f"--- {item['model']}, {item['strategy']}\n{item['text']}" for item in samples) + "\n"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: its samples can't be read ({error}): run `ava evaluate` again") from error
