"""Figures of unusual shapes, and the same bytes from the same values."""

import re

import numpy as np
import pytest

from ava_core.evaluation.charts import load_heat_map, loss_curve, position_curve

LOAD = np.linspace(0.0, 2.0, 12).reshape(2, 6)
KINDS = ["ffn"] * 3 + ["zero", "copy", "constant"]
HISTORY = [{"step": step, "train_loss": 5.0 / step} for step in range(1, 40)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: load_heat_map(LOAD, KINDS, LOAD < 0.1),
        lambda: loss_curve([*HISTORY, {"step": 40, "train_loss": 0.1, "validation_loss": 0.2}], 0.3),
        lambda: position_curve([3.0, 2.5, None, 2.0]),
    ],
)
def test_same_values_give_the_same_bytes(draw):
    assert draw() == draw()


def test_ids_differ_between_figures_of_one_page():
    def ids(svg):
        return set(re.findall(r'<clipPath id="([^"]+)"', svg))

    first, second = ids(loss_curve(HISTORY, 1.0)), ids(position_curve([3.0, 2.0]))
    assert first
    assert second
    assert not first & second


def test_single_layer_of_ffn_experts_and_seventy_experts_can_be_drawn():
    assert load_heat_map(np.ones((1, 1)), ["ffn"], np.zeros((1, 1), bool)).startswith("<svg")
    many = np.ones((16, 70))
    assert load_heat_map(many, ["ffn"] * 64 + ["zero"] * 6, many > 2).startswith("<svg")


def test_model_without_a_training_record_still_gets_its_curve():
    assert loss_curve([], 3.0).startswith("<svg")
