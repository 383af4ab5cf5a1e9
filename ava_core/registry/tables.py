"""Tables by row for MLflow's evaluation page of runs: what each model lost on each document, and what it wrote.

In the form that `MlflowClient.log_table` gives them: a JSON file of pandas' orient "split", and a tag that names it.
The call itself appends to a table that is there, so a repeated registration would double the rows. The page groups by
the first column and compares the second, unless its reader chooses others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.evaluation import losses
from ava_core.evaluation.losses import NoLossesError
from ava_core.evaluation.rows import document_columns
from ava_core.files import write_json

LOGGED = "mlflow.loggedArtifacts"
"""MLflow's tag of the tables that its pages offer."""
DOCUMENTS, SAMPLES = "losses_by_document.json", "samples_by_prompt.json"
MAX_ROWS = 2_000
"""Rows of a table: MLflow's page loads it whole. Of more documents the longest are kept, in their order."""
Table = dict[str, list[Any]]


def write_tables(folder: Path, evaluation: Path) -> dict[str, str]:
    """Write the tables of an evaluation into `folder`; the tags that a run with these files at its root has.

    Raises:
        IntegrityError: the evaluation's losses are damaged.
    """
    contents = json.loads((evaluation / "evaluation.json").read_text())
    tables = {DOCUMENTS: _documents(evaluation), SAMPLES: _samples(contents)}
    written = [name for name, table in tables.items() if table["data"]]
    for name in written:
        write_json(folder / name, tables[name])
    return {LOGGED: json.dumps([{"path": name, "type": "table"} for name in written])} if written else {}


def _documents(evaluation: Path) -> Table:
    """A row for each document: bits per byte and accuracy of each model, and its size; empty without losses."""
    try:
        found = losses.read(evaluation)
    except NoLossesError:
        return {"columns": [], "data": []}
    columns = document_columns(found, MAX_ROWS)
    return {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}


def _samples(contents: Mapping[str, Any]) -> Table:
    """A row for each text; MLflow's page puts those of several runs beside each other by prompt."""
    rows = [
        [item["prompt"], item["text"][len(item["prompt"]) :], item["model"], item["strategy"]]
        for item in contents.get("samples", [])
    ]
    return {"columns": ["prompt", "continuation", "model", "strategy"], "data": rows[:MAX_ROWS]}
