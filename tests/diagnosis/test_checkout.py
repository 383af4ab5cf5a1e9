"""git, DVC and params.yaml of a folder."""

import subprocess

import pytest

from ava_core.diagnosis import checkout
from ava_core.diagnosis.checkout import check_dvc, check_git, check_settings


def only(findings):
    (finding,) = findings
    return finding


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one\n")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one")
    return tmp_path


def test_the_commit_and_how_many_files_changed(repository):
    assert "changed" not in only(check_git(repository, {})).value
    (repository / "file").write_text("two\n")
    assert only(check_git(repository, {})).value.endswith(", 1 changed files")


def test_no_checkout_and_no_git_warn_unless_the_commit_is_given(tmp_path, monkeypatch):
    assert only(check_git(tmp_path, {})).value == "no checkout"
    assert only(check_git(tmp_path, {"AVA_GIT_COMMIT": "0123456789abcdef"})).status == "ok"
    monkeypatch.setenv("PATH", "/none")
    finding = only(check_git(tmp_path, {}))
    assert (finding.status, finding.value) == ("warn", "no git") and "AVA_GIT_COMMIT" in finding.way_out


def test_a_missing_dvc_and_a_folder_without_it_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(checkout.metadata, "version", lambda name: "3.67.1")
    assert "no .dvc here" in only(check_dvc(tmp_path)).value
    (tmp_path / ".dvc").mkdir()
    assert only(check_dvc(tmp_path)).status == "ok"

    def missing(name):
        raise checkout.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checkout.metadata, "version", missing)
    assert only(check_dvc(tmp_path)).value == "not installed"


def test_parameters_are_validated(tmp_path):
    assert only(check_settings(tmp_path)).status == "warn"
    (tmp_path / "params.yaml").write_text("preset: cpu/tiny\n")
    assert only(check_settings(tmp_path)).value == "params.yaml is valid, preset cpu/tiny"
    (tmp_path / "params.yaml").write_text("train: {stepps: 3}\n")
    finding = only(check_settings(tmp_path))
    assert finding.status == "fail" and "train.stepps: unknown key" in finding.value
    assert finding.way_out == "did you mean train.steps?"
