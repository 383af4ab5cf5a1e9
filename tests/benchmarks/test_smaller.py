"""The benchmark of smaller models: what it refuses, and what it prints."""

import pytest

from ava_core.config import resolve
from benchmarks import smaller


def test_student_is_a_valid_model_of_less_than_half_the_size():
    overrides = ["preset=cpu/tiny", *(f"{key}={value}" for key, value in smaller.STUDENT.items())]
    student, large = resolve(overrides=overrides).config.model, resolve(overrides=["preset=cpu/tiny"]).config.model
    assert student.hidden_size * 2 == large.hidden_size and student.num_layers < large.num_layers


@pytest.mark.parametrize("flag", ["--steps", "--teacher-steps", "--tuning-steps"])
def test_too_few_steps_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ending:
        smaller.main([flag, "1"])
    assert ending.value.code == 2 and "must be > 1" in capsys.readouterr().err


def test_table_compares_each_with_the_large_one():
    text = smaller.show({"large": 2.0, "student": 2.25}, {"large": 2_800_000, "student": 500_000}, "large")
    assert text.splitlines()[2].split() == ["student", "0.50", "M", "2.2500", "+0.2500"]
