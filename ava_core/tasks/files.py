"""Our own tasks as lm-eval's: a YAML file and the questions as JSON lines, which lm-eval itself runs on any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ava_core.tasks.held_out import HeldOutTask


def task_settings(task: HeldOutTask, seed: int, data: str) -> dict[str, Any]:
    """The task in lm-eval's form.

    Args:
        task: what is asked.
        seed: that it was made with.
        data: path of the questions.
    """
    metrics = ["acc"] if len(task.items[0].choices) == 2 else ["acc", "acc_norm"]
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
        "metadata": {"version": 1.0, "seed": seed, "items": len(task.items), "form": task.form},
    }


def write_task(task: HeldOutTask, seed: int, folder: Path) -> Path:
    """Write NAME.yaml and NAME.jsonl into `folder`; lm-eval, started in that folder, finds the questions.

    Returns:
        The YAML file.
    """
    data = folder / f"{task.name}.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in task.rows()), encoding="utf-8")
    path = folder / f"{task.name}.yaml"
    settings = task_settings(task, seed, data.name)
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
