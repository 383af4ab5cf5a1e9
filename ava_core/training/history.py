"""The history of a run: a row per optimiser step, kept durably, and written as JSON lines, CSV and a plot."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

MEASURED = ("validation_", "tasks.")
"""How the names of figures begin that only some steps have."""
FIRST_COLUMNS = ["step", "train_loss", "validation_loss", "validation_bits_per_byte", "learning_rate", "gradient_norm"]


class History:
    """Rows of figures, each with its `step`, appended to a file as they come.

    Args:
        path: the JSON lines; outlives a killed run.
        durable: write them; False for a process that shares the file with one that does.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        self.rows: list[dict[str, float]] = []

    def resume(self, step: int) -> None:
        """Read the rows up to `step`; later ones, and a line that a kill cut off, are dropped from the file too."""
        self.rows = []
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if row["step"] <= step:
                    self.rows.append(row)
        if self.durable:
            self.path.write_text("".join(_line(row) for row in self.rows))

    def append(self, row: dict[str, float]) -> None:
        """Add a row; figures that aren't finite, which JSON can't hold, are left out."""
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        self.rows.append(row)
        if not self.durable:
            return
        with self.path.open("a") as file:
            file.write(_line(row))

    def export(self, folder: Path) -> None:
        """Write history.jsonl, history.csv, validation.csv and loss.png; all bytes follow from the rows alone.

        What is measured now and then has a table of its own: plots of `dvc` and of spreadsheets take an empty cell
        for 0.
        """
        (folder / "history.jsonl").write_text("".join(_line(row) for row in self.rows))
        trained = [{name: row[name] for name in row if not name.startswith(MEASURED)} for row in self.rows]
        measured = [
            {name: row[name] for name in row if name == "step" or name.startswith(MEASURED)} for row in self.rows
        ]
        _write_table(folder / "history.csv", trained)
        _write_table(folder / "validation.csv", [row for row in measured if len(row) > 1])
        plot_losses(self.rows, folder / "loss.png")


def _write_table(path: Path, rows: list[dict[str, float]]) -> None:
    """A missing cell, as of a skipped step, is `nan`, which no reader takes for 0."""
    names = {name for row in rows for name in row}
    columns = [*(name for name in FIRST_COLUMNS if name in names), *sorted(names - set(FIRST_COLUMNS))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or FIRST_COLUMNS[:1], restval="nan", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot_losses(rows: list[dict[str, float]], path: Path) -> None:
    """Training and validation loss over steps as a PNG without a date in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    trained = [row for row in rows if "train_loss" in row]  # a skipped step's may be missing
    axes.plot([row["step"] for row in trained], [row["train_loss"] for row in trained], linewidth=1, label="training")
    measured = [row for row in rows if "validation_loss" in row]
    axes.plot(
        [row["step"] for row in measured],
        [row["validation_loss"] for row in measured],
        marker="o",
        markersize=3,
        label="validation",
    )
    axes.set(xlabel="step", ylabel="nats per token", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"
