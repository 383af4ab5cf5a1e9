"""The table of benchmarks."""

from __future__ import annotations

from typing import Any


def task_rows(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the benchmarks: task, metric, questions, and a cell for each model with its `value` and `error` as text,
    and where the value lies in [0, 1] the `bar`: ends and middle of one error to either side, in percent."""
    by_model = contents.get("tasks", {})
    found = {
        (result["name"], metric): None
        for results in by_model.values()
        for result in results
        for metric in result["metrics"]
    }
    rows = []
    for name, metric in found:
        results = [next((item for item in by_model[model] if item["name"] == name), None) for model in by_model]
        first = next(item for item in results if item is not None)
        rows.append(
            {
                "task": name,
                "metric": metric,
                "questions": first["items"],
                "num_fewshot": first["num_fewshot"],
                "cells": [_task_cell(item, metric) for item in results],
            }
        )
    return rows


def _task_cell(result: dict[str, Any] | None, metric: str) -> dict[str, Any]:
    if result is None or metric not in result["metrics"]:
        return {"value": "", "error": "", "bar": None}
    value, error = result["metrics"][metric], result["errors"].get(metric)
    bar = None
    if error is not None and 0 <= value <= 1:
        bar = [round(100 * min(max(point, 0.0), 1.0), 2) for point in (value - error, value, value + error)]
    return {"value": f"{value:.4f}", "error": "" if error is None else f"± {error:.4f}", "bar": bar}
