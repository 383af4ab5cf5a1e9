import pytest

from ava_core.sweeping.charts import axis_of


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 1], ["0", "1"]),
        ([3.0, 7.0, 11.0], ["3", "5", "7", "9", "11"]),
        ([0.0, 0.5], ["0", "0.125", "0.25", "0.375", "0.5"]),
        ([4, 4], ["4"]),
        (["muon", "lion"], ["muon", "lion"]),
    ],
)
def test_ticks_stand_where_their_values_are(values, ticks):
    """Of whole numbers, such as trials, there are only whole ticks."""
    axis = axis_of("axis", values)
    assert [text for _, text in axis.ticks] == ticks
    for place, text in axis.ticks:
        value = text if isinstance(values[0], str) else float(text)
        assert place == pytest.approx(axis.place(value))
