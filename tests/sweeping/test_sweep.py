"""The real driver over a program that only pretends to train."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from ava_core.config import resolve
from ava_core.errors import AvaError, ConfigError
from ava_core.interruption import Interrupted
from ava_core.sweeping import storage
from ava_core.sweeping.sampling import random_settings
from ava_core.sweeping.sweep import open_study, run_sweep
from ava_core.sweeping.trial import TrialRunner
from tests.sweeping.conftest import RATES, SPACE

LOG = {"train.learning_rate": {"min": 0.0001, "max": 1.0, "scale": "log"}}


def rates(fakes):
    return [call["sets"]["train.learning_rate"] for call in fakes.calls()]


def test_a_grid_runs_every_point_once_and_writes_the_best(fakes):
    results = run_sweep(fakes.request())
    assert rates(fakes) == RATES and len(fakes.calls("preprocess")) == 1
    assert [row.settings["train.learning_rate"] for row in results.rows] == [0.01, 0.1, 0.001]
    out = fakes.folder / "out"
    config = resolve(params=fakes.folder / "params.yaml", config_files=[out / "best.yaml"]).config
    assert config.train.learning_rate == 0.01
    assert json.loads((out / "sweep.json").read_text())["best"] == 1
    again = run_sweep(fakes.request())
    assert len(fakes.calls()) == 3 and again.as_dict() == results.as_dict()


def test_best_settings_hold_what_was_set_for_the_whole_sweep(fakes):
    run_sweep(fakes.request(base=["train.weight_decay=0.7"]))
    best = resolve(params=fakes.folder / "params.yaml", config_files=[fakes.folder / "out" / "best.yaml"]).config
    assert best.train.weight_decay == 0.7


def test_a_failed_trial_is_recorded_with_its_reason_and_ends_nothing(fakes):
    fakes.tell(fail=[1])
    results = run_sweep(fakes.request(max_failures=1))
    failed = results.rows[-1]
    assert (failed.number, failed.state) == (1, "failed")
    assert failed.reason == "train: step 7: gradient norm is nan: lower train.learning_rate"
    assert results.best.number == 0


def test_more_failures_than_allowed_end_the_sweep(fakes):
    fakes.tell(fail=[0, 1])
    with pytest.raises(AvaError, match=r"2 trials failed, more than --max-failures 1; trial 1: train: step 7"):
        run_sweep(fakes.request(max_failures=1))
    assert len(fakes.calls()) == 2


def test_settings_that_the_schema_refuses_together_fail_a_trial_without_training(fakes):
    space = {"train.steps": {"values": [5, 6, 7, 200]}, "train.learning_rate": {"values": [0.01]}}
    space["train.warmup_steps"] = {"values": [2, 100]}
    results = run_sweep(fakes.request(parameters=space, method="random", trials=4, max_failures=8, seed=1))
    failed = [row for row in results.rows if row.state == "failed"]
    assert failed and all("must be < steps" in row.reason for row in failed)
    assert len(fakes.calls()) == 4 - len(failed)


def test_asha_ends_a_hopeless_training_at_once_and_leaves_nothing_of_it(fakes):
    fakes.tell(slow=[1, 2])
    points = {"train.learning_rate": {"values": [0.01, 1.0, 0.0001]}}
    started = time.monotonic()
    results = run_sweep(fakes.request(parameters=points, pruner={"asha": {"min_steps": 20, "reduction_factor": 2}}))
    assert time.monotonic() - started < 25  # a training that isn't ended takes minutes
    assert [(row.number, row.state, row.steps) for row in results.rows] == [
        (0, "complete", 100),
        (2, "pruned", 20),
        (1, "pruned", 20),
    ] or [row.state for row in results.rows] == ["complete", "pruned", "pruned"]
    assert not (fakes.folder / "work" / "train" / "0001").exists()
    left = {path.name for path in (fakes.folder / "out" / "trials" / "0001").iterdir()}
    assert left == {"settings.yaml"}


def test_a_training_that_is_faster_than_its_judge_is_judged_by_the_same_rows(fakes):
    points = {"train.learning_rate": {"values": [0.01, 1.0]}}
    results = run_sweep(fakes.request(parameters=points, pruner={"asha": {"min_steps": 20, "reduction_factor": 2}}))
    assert [(row.number, row.state, row.steps) for row in results.rows] == [(0, "complete", 100), (1, "pruned", 20)]
    assert not (fakes.folder / "out" / "trials" / "0001" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_one_worker_gives_the_same_trials_in_the_same_order_however_often_it_is_interrupted(
    fakes, monkeypatch, tmp_path, method
):
    settings = {"method": method, "parameters": LOG, "trials": 4, "startup_trials": 2, "seed": 3}
    run_sweep(fakes.request(**settings))
    undisturbed = rates(fakes)
    assert len(set(undisturbed)) == 4
    if method == "random":  # as `--via dvc` knows them, without a storage
        known = random_settings(fakes.request(**settings).checked)
        assert [each["train.learning_rate"] for each in known] == undisturbed
    fakes.journal.unlink()
    (tmp_path / "sweep.db").unlink()
    run, calls = TrialRunner.run, []

    def interrupted(self, number, *arguments):
        calls.append(number)
        if len(calls) in (2, 4):
            raise Interrupted(signal.SIGINT)
        return run(self, number, *arguments)

    monkeypatch.setattr(TrialRunner, "run", interrupted)
    monkeypatch.setattr("ava_core.sweeping.sweep._make_shards", lambda runner, request: None)
    request = fakes.request(**settings)
    object.__setattr__(request, "folder", tmp_path / "second")
    object.__setattr__(request, "work", tmp_path / "second-work")
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_sweep(request)
    run_sweep(request)
    assert calls == [0, 1, 1, 2, 2, 3]
    assert rates(fakes) == undisturbed


SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.sweeping.conftest import Fakes
from ava_core.sweeping.sweep import run_sweep
folder = Path(sys.argv[1])
run_sweep(Fakes(folder, SimpleNamespace(setenv=lambda *_: None)).request())
"""


@pytest.mark.slow
def test_a_killed_sweep_takes_its_trial_again_and_no_training_outlives_it(fakes):
    fakes.tell(hang=[1])
    environment = {**os.environ, "FAKE": json.dumps({"journal": str(fakes.journal), "hang": [1]})}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(fakes.folder)], env=environment)
    deadline = time.monotonic() + 100
    while len(fakes.calls()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    training = fakes.calls()[1]["pid"]
    time.sleep(0.3)
    process.kill()
    process.wait()
    while os.path.exists(f"/proc/{training}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{training}")
    fakes.tell()
    results = run_sweep(fakes.request())
    calls = fakes.calls()
    assert [call["number"] for call in calls] == [0, 1, 1, 2]
    assert calls[1]["sets"] == calls[2]["sets"] and calls[2]["again"]
    assert results.counts() == {"complete": 3}


def test_two_workers_share_the_trials(fakes):
    first, second = open_study(fakes.request()), open_study(fakes.request())
    taken = [first.claim(), second.claim(), first.claim()]
    assert [claim.number for claim in taken] == [0, 1, 2]
    assert second.claim() is None


def test_another_space_under_the_same_name_is_refused_and_more_trials_are_not(fakes):
    run_sweep(fakes.request(method="random", parameters=LOG, trials=1))
    with pytest.raises(ConfigError, match=r"begun with another parameters.train.learning_rate: .* give another --name"):
        run_sweep(fakes.request(method="random", trials=1))
    with pytest.raises(ConfigError, match="begun with another configuration"):
        run_sweep(fakes.request(method="random", parameters=LOG, trials=1, base=["train.weight_decay=0.5"]))
    assert len(run_sweep(fakes.request(method="random", parameters=LOG, trials=2)).rows) == 2
    run_sweep(fakes.request(name="other"))


def test_a_storage_that_is_locked_or_away_is_named_in_one_line(fakes, monkeypatch):
    request = fakes.request()
    open_study(request)
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.2)
    holder = sqlite3.connect(fakes.folder / "sweep.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(AvaError, match=r"sweep.db: is locked by another program") as error:
        run_sweep(request)
    assert "\n" not in str(error.value)
    holder.close()
    object.__setattr__(request, "storage", "postgresql+psycopg2://me:hidden@127.0.0.1:9/sweeps")
    with pytest.raises(AvaError, match=r"127.0.0.1:9/sweeps: can't be used: .*[Cc]onnection") as error:
        run_sweep(request)
    assert "hidden" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="must be sqlite"):
        storage.require_storage("mysql://me:hidden@host/db")


def test_postgresql_without_a_driver_in_its_address_is_psycopg2_and_a_missing_one_is_named(fakes, monkeypatch):
    """SQLAlchemy 2.1 takes psycopg 3 for such an address, 2.0 took psycopg2."""
    assert storage.require_storage("postgresql://me@host/db") == "postgresql+psycopg2://me@host/db"
    assert storage.require_storage("postgresql+pg8000://me@host/db") == "postgresql+pg8000://me@host/db"
    request = fakes.request()
    object.__setattr__(request, "storage", "postgresql+pg8000://me:hidden@host/db")
    with pytest.raises(AvaError, match=r"^--storage postgresql\+pg8000://\S*: can't be used: \S.*$") as error:
        run_sweep(request)
    assert "hidden" not in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs psycopg2, which isn't installed: pip install psycopg2-binary$"):
        storage.require_storage("postgresql://me@host/db")


def test_several_objectives_give_a_front(fakes):
    goals = [{"name": "validation_bits_per_byte"}, {"name": "active_parameters"}]
    space = {"train.learning_rate": {"values": [0.01, 1.0]}, "model.hidden_size": {"values": [64, 128]}}
    results = run_sweep(fakes.request(metric=None, objectives=goals, parameters=space))
    front = {
        (row.settings["train.learning_rate"], row.settings["model.hidden_size"]) for row in results.rows if row.on_front
    }
    assert front == {(0.01, 64)}
    assert set(results.importances) == set(space)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(fakes):
    space = {**SPACE, "parameters": {"train.learning_rate": {"values": RATES}}}
    fakes.tell(fail=[2])
    run_sweep(fakes.request(**space))
    page = (fakes.folder / "out" / "sweep.html").read_text()
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page)
    assert page.count('<tr data-trial="') == 3 and "gradient norm is nan" in page
