import os
import subprocess
import sys
import time

import pytest

from ava_core.runtime import manifest
from ava_core.runtime.atomic_copy import copy_atomically
from ava_core.runtime.work import WorkStore, timings_path

DAY = 86_400


def make_entry(store, key, size=1000, age_days=0.0):
    entry = store.entry("train", key)
    with entry.locked():
        entry.output.mkdir()
        (entry.output / "data").write_bytes(bytes(size))
    used = time.time() - age_days * DAY
    os.utime(entry.folder / "lock", (used, used))
    return entry


@pytest.fixture
def store(tmp_path):
    return WorkStore(tmp_path / "work")


def kept(store):
    return {entry.folder.name for _, entry, _, _ in store.entries()}


def test_pruning_by_age_removes_what_was_not_used_lately(store):
    make_entry(store, "old", age_days=31)
    make_entry(store, "new", age_days=29)
    assert [entry.folder.name for entry in store.prune(30)] == ["old"]
    assert kept(store) == {"new"}


def test_pruning_by_size_removes_the_longest_unused_first(store):
    for key, age in (("c", 1), ("a", 3), ("b", 2)):
        make_entry(store, key, size=1000, age_days=age)
    store.prune(max_bytes=2000)
    assert kept(store) == {"b", "c"}


def test_work_of_the_last_hours_is_kept_whatever_its_size(store):
    make_entry(store, "fresh", size=5000)
    make_entry(store, "yesterday", size=5000, age_days=1.5)
    store.prune(max_bytes=100, kept_hours=24)
    assert kept(store) == {"fresh"}


def test_using_an_entry_makes_it_young(store):
    entry = make_entry(store, "a", age_days=40)
    with entry.locked():
        pass
    assert store.prune(30) == []


def test_an_entry_that_a_running_step_holds_is_never_pruned(store):
    entry = make_entry(store, "held", age_days=99)
    program = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(entry.folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    assert store.prune(1) == []
    holder.communicate(b"\n")
    assert len(store.prune(1)) == 1


def test_a_lock_whose_entry_was_pruned_meanwhile_is_taken_again(store, monkeypatch):
    """The entry vanishes between the opening of its lock and the locking: a lock on a deleted file protects nothing."""
    import fcntl

    entry = store.entry("train", "a")
    real, calls = fcntl.flock, []

    def prune_first(file, how):
        if not calls:
            (entry.folder / "lock").unlink()
        calls.append(how)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", prune_first)
    with entry.locked():
        assert (entry.folder / "lock").exists()
    assert len(calls) == 2


def test_timings_lie_beside_the_output(tmp_path):
    assert timings_path(tmp_path / "int8.v1") == tmp_path / "int8.v1.timings.json"


def finished(folder):
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(os.urandom(300_000))
    (folder / "empty").touch()
    return folder


def test_placing_copies_every_byte_and_removes_what_a_killed_process_left(tmp_path, read_all):
    source = finished(tmp_path / "source")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".out.{ended.pid}.partial").mkdir()
    (tmp_path / f".out.{os.getpid()}.replaced").mkdir()
    (tmp_path / ".out.1.partial").mkdir()  # process 1 lives
    (tmp_path / ".out.notes").touch()
    copy_atomically(source, tmp_path / "out", {})
    assert read_all(tmp_path / "out") == read_all(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.1.partial", ".out.notes", "out", "source"]


def test_placing_works_where_the_kernel_cannot_copy_by_itself(tmp_path, monkeypatch, read_all):
    import errno

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = finished(tmp_path / "source")
    copy_atomically(source, tmp_path / "out", {})
    assert read_all(tmp_path / "out") == read_all(source)


def test_what_was_there_stays_when_the_copy_fails(tmp_path, monkeypatch, read_all):
    source, out = finished(tmp_path / "source"), finished(tmp_path / "out")
    before = read_all(out)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="No space"):
        copy_atomically(source, out, {})
    assert read_all(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_kept_output_without_manifest_or_timings_is_thrown_away(store):
    entry = make_entry(store, "a")
    assert entry.finished() is None
    assert not entry.output.exists()

    entry.begin()
    identity = {"step": "train", "key": "a", "version": "0", "code": "", "config": "", "choices": {}, "inputs": {}}
    entry.finish(manifest.Manifest(**identity, threads=1, ranks=1), {"wall_seconds": 1.0})
    assert entry.finished() is not None
    entry.timings.unlink()
    assert entry.finished() is None


def test_what_a_step_keeps_of_its_state_lies_beside_the_output(store):
    entry = store.entry("train", "k")
    with entry.locked():
        entry.begin()
        (entry.keeping / "checkpoints").mkdir(parents=True)
        (entry.keeping / "checkpoints" / "best").write_bytes(bytes(5000))
        (entry.state / "scratch").write_bytes(bytes(10))
        entry.finish(finished_manifest(entry), {})
    assert not entry.state.exists()
    assert (entry.kept / "checkpoints" / "best").stat().st_size == 5000
    assert store.entries()[0][2] >= 5000
    store.prune(max_bytes=100)
    assert not entry.folder.exists()


def test_kill_before_the_state_was_ended_loses_nothing_that_is_kept(store):
    entry = store.entry("train", "k")
    with entry.locked():
        entry.begin()
        entry.finish(finished_manifest(entry), {})
        (entry.keeping / "checkpoints").mkdir(parents=True)  # as a kill just after the output was renamed leaves it
        assert entry.finished()
    assert (entry.kept / "checkpoints").is_dir() and not entry.state.exists()


def test_forgetting_removes_what_was_kept(store):
    entry = store.entry("train", "k")
    entry.kept.mkdir(parents=True)
    entry.forget()
    assert not entry.kept.exists()


def finished_manifest(entry):
    return manifest.Manifest(
        step="train",
        key="k",
        version="0",
        code="0",
        config="0",
        choices={},
        inputs={},
        threads=1,
        ranks=1,
        files=manifest.describe_files(entry.staging),
    )
