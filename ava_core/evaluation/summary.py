"""summary.md: the figures and some samples in short, for pages that show Markdown (Kubeflow's do, without raw HTML)."""

from __future__ import annotations

import re
from typing import Any

from ava_core.evaluation.losses import FLOAT
from ava_core.evaluation.report import Report, comparison, text_note
from ava_core.evaluation.report.context import context_rows
from ava_core.evaluation.report.tasks import task_rows

STRATEGY = "nucleus"


def to_markdown(report: Report) -> str:
    """The page, a function of its argument alone."""
    contents = report.contents
    figures, protocol = contents["figures"], contents["protocol"]
    models = list(figures)
    rows = [["figure", *models], ["---", *["---:"] * len(models)]]
    rows += [[f"{row['label']} `{row['name']}`", *map(_cell, row["cells"])] for row in comparison(report)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    samples = "\n\n".join(_fenced(item["text"]) for item in _chosen(contents["samples"]))
    note = text_note(contents)
    paragraph = f"\n{_escaped(note)}\n" if note else ""
    return f"""# {figures[FLOAT]["test_bits_per_byte"]:.4f} bits per byte

On {protocol["bytes"]:,} bytes in {protocol["documents"]:,} held-out documents, {protocol["tokens"]:,} tokens, scored in
windows of {protocol["sequence_length"]}. bz2 needs {contents["references"]["bz2_bits_per_byte"]:.4f} on the same text.
{paragraph}
{table}
{_context(contents, models)}{_tasks(contents, models)}
## The model wrote

By {STRATEGY} sampling, seed {report.seed}; the prompt is the beginning of each text.

{samples}
"""


def _tasks(contents: dict[str, Any], models: list[str]) -> str:
    """The benchmarks, if there are any, between blank lines."""
    rows = [
        [
            f"{row['task']} `{row['metric']}`",
            f"{row['questions']:,}",
            *(f"{c['value']} {c['error']}" for c in row["cells"]),
        ]
        for row in task_rows(contents)
    ]
    if not rows:
        return ""
    head = [["benchmark", "questions", *models], ["---", *["---:"] * (len(models) + 1)]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in head + rows)
    return f"\n## Benchmarks\n\nWith standard errors over the questions.\n\n{table}\n"


def _context(contents: dict[str, Any], models: list[str]) -> str:
    """Losses in longer windows, if they were asked for, between blank lines."""
    rows = [
        [
            row["places"] + ("" if row["trained"] else " *"),
            f"{row['tokens']:,}",
            *(cell["loss"] for cell in row["cells"]),
        ]
        for row in context_rows(contents)
    ]
    if not rows:
        return ""
    head = [["tokens read", "scored tokens", *models], ["---:"] * (len(models) + 2)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in head + rows)
    found = contents["context"]
    note = f"Nats per token in windows of {found['length']:,}, by how much of its document the model had read"
    return f"\n## Longer context\n\n{note}; * is beyond its training's {found['trained']:,}.\n\n{table}\n"


def _escaped(text: str) -> str:
    """Without what Markdown would take for its own; names of documents may hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _cell(cell: dict[str, str]) -> str:
    return f"{cell['value']} ({cell['change']})" if cell["change"] else cell["value"]


def _chosen(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in samples if item["model"] == FLOAT and item["strategy"] == STRATEGY]


def _fenced(text: str) -> str:
    """A code block that the text, whatever it is, can't end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
