"""The tables of a training: every cell a number or `nan`, and nothing that a plot would take for 0."""

import csv
import math

from ava_core.training.history import History


def read(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_is_measured_now_and_then_has_a_table_of_its_own(tmp_path):
    history = History(tmp_path / "rows.jsonl")
    for step in range(1, 7):
        row = {"step": step, "train_loss": 6.0 - step / 10, "learning_rate": 0.1}
        history.append(row | ({"validation_loss": 5.5, "validation_bits_per_byte": 2.5} if step % 3 == 0 else {}))
    history.export(tmp_path)
    assert [row["step"] for row in read(tmp_path / "history.csv")] == list("123456")
    assert "validation_loss" not in read(tmp_path / "history.csv")[0]
    assert read(tmp_path / "validation.csv") == [
        {"step": step, "validation_loss": "5.5", "validation_bits_per_byte": "2.5"} for step in "36"
    ]


def test_figure_that_a_step_lacks_is_no_number_rather_than_empty(tmp_path):
    history = History(tmp_path / "rows.jsonl")
    history.append({"step": 1, "train_loss": 6.0, "learning_rate": 0.1})
    history.append({"step": 2, "train_loss": math.nan, "learning_rate": 0.1, "skipped": 1.0})
    history.export(tmp_path)
    first, second = read(tmp_path / "history.csv")
    assert second["train_loss"] == "nan" and first["skipped"] == "nan" and "" not in {*first.values(), *second.values()}


def test_training_without_a_measurement_has_an_empty_table(tmp_path):
    history = History(tmp_path / "rows.jsonl")
    history.append({"step": 1, "train_loss": 6.0})
    history.export(tmp_path)
    assert (tmp_path / "validation.csv").read_text() == "step\n"
