"""`train.tasks_every`: figures on the way, and a training that is none the wiser."""

import json

import pytest

from ava_core.config import resolve
from ava_core.errors import ConfigError
from tests.training.whole_runs import rows

EVERY = {"tasks_every": 2, "tasks_limit": 20, "steps": 5}


@pytest.mark.slow
def test_figures_come_at_their_steps_and_the_weights_are_the_same_bytes(run):
    watched, _ = run("watched", train=EVERY)
    plain, _ = run("plain", train={"steps": 5})
    assert (watched / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    found = {row["step"]: row for row in rows(watched)}
    for step, row in found.items():
        assert ("tasks.swapped_words.acc" in row) == ("tasks.next_line.acc" in row) == (step in (2, 4))
    assert 0 <= found[4]["tasks.next_line.acc"] <= 1
    bare = [{name: value for name, value in row.items() if not name.startswith("tasks.")} for row in found.values()]
    assert json.dumps(bare) == json.dumps(rows(plain))
    head = (watched / "validation.csv").read_text().splitlines()[0].split(",")
    assert "tasks.swapped_words.acc" in head
    assert not any(
        name.startswith("tasks.") for name in (watched / "history.csv").read_text().split("\n")[0].split(",")
    )


def test_task_that_cannot_run_ends_the_training_before_its_first_step(run):
    with pytest.raises(ConfigError, match=r"train\.tasks: swaped_words: there is no task .* swapped_words"):
        run("model", train={**EVERY, "tasks": ["swaped_words"]})


def test_file_of_a_task_is_for_the_evaluation():
    with pytest.raises(ConfigError, match=r"my\.yaml: files are for evaluate\.tasks"):
        resolve(overrides=["train.tasks=[my.yaml]"])
