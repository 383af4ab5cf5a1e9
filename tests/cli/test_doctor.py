"""`ava doctor`: lines, JSON, exit codes."""

import json
import time

import pytest

from ava_core.diagnosis import Finding


@pytest.fixture
def found(monkeypatch):
    findings = [Finding("ok", "python", "3.11"), Finding("warn", "git", "no checkout", "clone it")]
    monkeypatch.setattr("ava_core.diagnosis.examine", lambda place: findings)
    return findings


def test_a_warning_exits_with_0_and_a_failure_with_1(ava, found):
    shown = ava("doctor")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "ok    python: 3.11\nwarn  git: no checkout - clone it\n"
    found.append(Finding("fail", "disk", "full", "free some"))
    assert ava("doctor").code == 1


def test_json_says_the_same(ava, found):
    told = json.loads(ava("doctor", "--json").out)
    assert told["ok"] is True and told["findings"][1]["way_out"] == "clone it" and told["ava"]
    found.append(Finding("fail", "disk", "full", "free some"))
    shown = ava("doctor", "--json")
    assert shown.code == 1 and json.loads(shown.out)["ok"] is False


def test_the_real_checks_say_what_is_wrong_here(ava, tmp_path, monkeypatch, record_property):
    """How fast they are is recorded, not judged; that none is waited for, tests/diagnosis/test_examination.py says."""
    monkeypatch.setattr("ava_core.diagnosis.examination.PATIENCE", 60.0)  # of a machine with other things to do
    (tmp_path / "params.yaml").write_text("train: {stepps: 3}\n")
    began = time.monotonic()
    shown = ava("doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9", AVA_WORK="/proc/work", DOCKER_HOST="unix:///none")
    record_property("seconds", round(time.monotonic() - began, 2))
    assert shown.code == 1
    lines = shown.out.splitlines()
    failures = {line.split(":")[0] for line in lines if line.startswith("fail")}
    assert {"fail  mlflow", "fail  settings", "fail  disk of the work folder"} <= failures
    assert all(line.startswith(("ok    ", "warn  ", "fail  ")) for line in lines)
    assert all(" - " in line for line in lines if not line.startswith("ok"))
