"""An image of other code than this checkout's is told apart by the commit in its label."""

import subprocess

import pytest

from pipelines.image_drift import REVISION, find_drift


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "ava_core").mkdir()
    (tmp_path / "ava_core" / "model.py").write_text("LAYERS = 2\n")
    (tmp_path / "notes.md").write_text("a\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    return tmp_path, git("rev-parse", "HEAD"), git


def test_image_of_the_same_code_needs_no_word_whatever_else_changed(checkout):
    folder, commit, git = checkout
    (folder / "notes.md").write_text("b\n")
    git("commit", "-qam", "two")
    assert find_drift("ava-moe:cpu", {REVISION: commit}, folder) is None


def test_image_of_other_code_is_told_with_the_way_out(checkout):
    folder, commit, _ = checkout
    (folder / "ava_core" / "model.py").write_text("LAYERS = 4\n")
    line = find_drift("ava-moe:cpu", {REVISION: commit}, folder)
    assert line.startswith(f"image ava-moe:cpu was built from commit {commit[:12]}, whose ava_core or configs differ")
    assert "make images" in line and "\n" not in line


def test_image_of_uncommitted_changes_can_not_be_told(checkout):
    folder, commit, _ = checkout
    line = find_drift("sha256:" + "a" * 64, {REVISION: f"{commit}-dirty"}, folder)
    assert line.startswith(f"image sha256:aaaaaaaaaaaa was built from commit {commit[:12]} with changes")


def test_commit_that_is_not_here_is_other_code(checkout):
    assert "differ from those here" in find_drift("ava-moe:cpu", {REVISION: "0" * 40}, checkout[0])


def test_image_without_the_label_and_folder_without_git_are_left_alone(checkout, tmp_path_factory):
    assert find_drift("other:1", {}, checkout[0]) is None
    assert find_drift("ava-moe:cpu", {REVISION: checkout[1]}, tmp_path_factory.mktemp("no-git")) is None
