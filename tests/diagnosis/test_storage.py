"""Disks that are full, read-only, or no folders."""

import errno
import os

import pytest

from ava_core.diagnosis import storage
from ava_core.diagnosis.storage import check_disk


def only(findings):
    (finding,) = findings
    return finding


@pytest.mark.parametrize(("free", "status"), [(0.1, "fail"), (2.0, "warn"), (50.0, "ok")])
def test_a_full_disk_fails_and_a_nearly_full_one_warns(tmp_path, free, status):
    finding = only(check_disk("disk", tmp_path, free))
    assert (finding.status, finding.value) == (status, f"{tmp_path}: {free:.1f} GiB are free")
    assert ("--prune" in finding.way_out) == (status != "ok")


def test_a_disk_without_inodes_fails(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    monkeypatch.setattr(
        storage.os, "statvfs", lambda path: os.statvfs_result((*real[:5], 1000, 0, 0, *real[8:10]))
    )  # fmt: skip
    assert only(check_disk("disk", tmp_path, 50.0)).value == f"{tmp_path}: no inode is free"


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_would_be(tmp_path):
    finding = only(check_disk("disk", tmp_path / "a" / "work", 50.0))
    assert finding.value == f"{tmp_path / 'a' / 'work'}, to be made in {tmp_path}: 50.0 GiB are free"
    assert not (tmp_path / "a").exists() and list(tmp_path.iterdir()) == []


def test_a_read_only_folder_fails(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    finding = only(check_disk("work", tmp_path, 50.0))
    assert (finding.status, finding.value) == ("fail", f"{tmp_path}: Read-only file system")
    assert "AVA_WORK" in finding.way_out


def test_a_file_system_that_takes_no_files_fails():
    assert only(check_disk("work", storage.Path("/proc/work"))).status == "fail"


def test_a_file_in_the_way_fails(tmp_path):
    (tmp_path / "file").write_text("")
    finding = only(check_disk("work", tmp_path / "file" / "work"))
    assert finding.status == "fail" and "is no folder" in finding.value


def test_a_relative_folder_is_told_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert only(check_disk("work", storage.Path(".ava/work"), 50.0)).value == (
        ".ava/work, to be made in .: 50.0 GiB are free"
    )
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert only(check_disk("work", storage.Path(".ava/work"))).status == "fail"
