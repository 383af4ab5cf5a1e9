"""`train.profile`: what it leaves beside the output, and that nothing else changes."""

import gzip
import json
import logging

import pytest

from ava_core.config import resolve
from ava_core.errors import ConfigError
from ava_core.runtime.digests import digest_tree
from ava_core.runtime.identity import values_read
from ava_core.steps.table import STEPS
from ava_core.training.callbacks.profile import tabulate


@pytest.mark.slow
def test_a_profile_has_trace_operations_and_phases_and_changes_no_byte(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain, _ = run("plain")
    folder = tmp_path / "profile"
    profiled, _ = run("profiled", profile=folder, train={"profile": 3})
    assert digest_tree(profiled) == digest_tree(plain)
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "profile.json", "profile.txt"}
    summary = json.loads((folder / "profile.json").read_text())
    phases, whole = summary["phases"], summary["seconds_per_step"]
    # Six steps, of which the last three: at the third and the sixth the loss is measured.
    assert summary["steps"] == 3
    assert {"data", "forward", "backward", "optimiser", "evaluation", "checkpoint", "callbacks"} <= phases.keys()
    assert sum(phases.values()) == pytest.approx(whole, rel=0.02)
    assert phases["forward"] > 0 and phases["backward"] > 0
    assert len(summary["operations"]) == 10
    assert summary["operations"] == sorted(summary["operations"], key=lambda row: -row["seconds_per_step"])
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ava: forward", "ava: optimiser", "aten::mm"} <= names
    table = (folder / "profile.txt").read_text().splitlines()
    shown = [line for line in caplog.messages if line.startswith("profile: ") and "wrote" not in line]
    assert shown == [f"profile: {line}" for line in table]
    assert sorted(table) == sorted(tabulate(summary))


def test_a_profile_enters_no_key():
    with_it, without = resolve(overrides=["train.profile=3"]).config, resolve().config
    assert with_it.train.profile == 3
    assert values_read(STEPS["train"], with_it) == values_read(STEPS["train"], without)
    assert values_read(STEPS["train"], resolve(overrides=["train.steps=99"]).config) != values_read(
        STEPS["train"], without
    )


@pytest.mark.parametrize(
    ("profile", "line"),
    [(301, r"train\.profile = 301: must be <= 100"), (0, r"train\.profile = 0: must be > 0")],
)
def test_profiles_of_no_or_too_many_steps_are_refused(profile, line):
    with pytest.raises(ConfigError, match=line):
        resolve(overrides=[f"train.profile={profile}"])


def test_a_profile_longer_than_the_training_is_refused():
    with pytest.raises(ConfigError, match=r"train\.profile = 50: must be <= steps = 40"):
        resolve(overrides=["train.profile=50", "train.steps=40"])
