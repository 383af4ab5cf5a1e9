"""The benchmark of waiting threads: its subjects wait as they say, and what keeps the cores busy ends with it."""

import os
import time

import psutil

from ava_core.config.threads import WAITING
from benchmarks import waiting
from benchmarks.turns import Workers


def test_every_subject_of_training_has_its_own_way_of_waiting():
    subjects = waiting.training(2)
    environments = {name: environment for name, _, _, environment in subjects}
    assert environments[waiting.ONE] == environments[waiting.OWN] == WAITING
    assert len({frozenset(environment.items()) for environment in environments.values()}) == len(subjects) - 1
    assert [arguments["threads"] for _, _, arguments, _ in subjects] == [1] + [2] * (len(subjects) - 1)


class Told:
    """A worker that tells a variable of its environment."""

    def __init__(self, name: str) -> None:
        self.name = name

    def turn(self, steps: int) -> dict:
        return {"value": os.environ.get(self.name), "steps": steps}


def test_worker_has_the_variables_that_it_is_given():
    factory = f"{__name__}:Told"
    with Workers(
        [("a", factory, {"name": "GOMP_SPINCOUNT"}), ("b", factory, {"name": "GOMP_SPINCOUNT"})],
        environments={"a": {"GOMP_SPINCOUNT": "7"}},
    ) as workers:
        told = workers.ask_each("turn", steps=1)
    assert told["a"]["value"] == "7" != told["b"]["value"]


def test_busy_processes_end_with_the_measurement():
    with waiting.busy(2):
        children = psutil.Process().children()
        mine = [child for child in children if "while True: pass" in child.cmdline()]
        assert len(mine) == 2
        time.sleep(0.1)
    assert not any(child.is_running() for child in mine)


def test_table_shows_medians_and_ratios_to_one_thread():
    found = {0: {"1 thread": [10.0, 10.0], "other": [20.0, 20.0]}, 4: {"1 thread": [8.0, 8.0], "other": [6.0, 6.0]}}
    lines = waiting.show("training", found).splitlines()
    assert lines[2].split() == ["other", "20", "x", "2.00", "6", "x", "0.75"]
