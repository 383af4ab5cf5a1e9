"""Files and folders that appear whole or not at all: after kills, faults and two writers at once."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ava_core import files
from ava_core.files import (
    discard,
    parse_json,
    replace_folder,
    unfinished_folder,
    whole_folder,
    write_json,
    write_whole,
)

NOBODY = 65534
ODD_NAMES = ["a[b]*?.json", "two\nlines", "größe.yaml", " ", ".hidden", "x.partial", "-", "a.1.partial"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_killed(program: str, folder: Path) -> int:
    """A program in which `die()` kills its process at once; the number of the process."""
    begin = "import os, signal, shutil\nfrom pathlib import Path\n"
    begin += "from ava_core.files import discard, whole_folder, write_whole\n"
    begin += "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    process = subprocess.Popen([sys.executable, "-c", begin + program], cwd=folder)
    assert process.wait() == -signal.SIGKILL
    return process.pid


@pytest.fixture
def small_files():
    """No file may become larger than 4,096 bytes: a write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("durable", [False, True])
def test_file_is_written_and_replaced_and_nothing_is_left_beside_it(tmp_path, name, durable):
    write_whole(tmp_path / name, "ä\n", durable=durable)
    write_whole(tmp_path / name, b"\x00later", durable=durable)
    assert (tmp_path / name).read_bytes() == b"\x00later"
    assert names(tmp_path) == [name]


def test_text_is_utf8_and_lines_end_as_they_are_given(tmp_path):
    write_whole(tmp_path / "file", "ä\r\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\r\n"


def test_kill_before_the_rename_leaves_the_former_file_and_the_next_writer_clears_up(tmp_path):
    (tmp_path / "file").write_text("former")
    number = run_killed('Path.replace = die\nwrite_whole(Path("file"), "new")', tmp_path)
    assert (tmp_path / "file").read_text() == "former"
    assert names(tmp_path) == [f".file.{number}.partial", "file"]
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_only_what_killed_writers_of_the_same_path_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [f".other.{ended.pid}.partial", f".file.json.{ended.pid}.partial", ".file.notes", ".file.1.partial"]
    for name in [*kept, f".file.{ended.pid}.partial", f".file.{os.getpid()}.replaced"]:
        (tmp_path / name).touch()
    write_whole(tmp_path / "file", "")
    assert names(tmp_path) == sorted([*kept, "file"])  # process 1 lives


def test_full_disk_leaves_the_former_file_and_names_it(tmp_path, small_files):
    write_whole(tmp_path / "file", "former")
    with pytest.raises(OSError, match="too large") as caught:
        write_whole(tmp_path / "file", "n" * 10_000)
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "former"
    assert names(tmp_path) == ["file"]


def test_folder_that_is_not_there_is_named_by_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "absent" / "file", "")
    assert caught.value.filename == str(tmp_path / "absent" / "file")


def test_read_only_folder_keeps_what_it_has(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("former")
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:  # for whom nothing is read-only
        os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError) as caught:
            write_whole(Path("file"), "new")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
    assert caught.value.filename == "file"
    assert (tmp_path / "file").read_text() == "former"


def test_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "far").write_text("far")
    (tmp_path / "file").symlink_to("far")
    write_whole(tmp_path / "file", "near")
    assert not (tmp_path / "file").is_symlink()
    assert ((tmp_path / "file").read_text(), (tmp_path / "far").read_text()) == ("near", "far")


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o600, 0o600)])
def test_permissions_are_those_of_a_new_file(tmp_path, mode, expected):
    (tmp_path / "file").touch(0o777)
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "", **({} if mode is None else {"mode": mode}))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


def test_file_can_be_written_beside_its_folder_so_that_a_kill_leaves_nothing_in_it(tmp_path):
    (tmp_path / "folder").mkdir()
    number = run_killed(
        'Path.replace = die\nwrite_whole(Path("folder/file"), "new", beside=Path("folder"))',
        tmp_path,
    )
    assert names(tmp_path / "folder") == []
    assert names(tmp_path) == [f".folder.{number}.partial", "folder"]


def test_two_writers_never_mix_and_a_reader_always_finds_a_whole_file(tmp_path):
    faults, letters = [], "ab"
    write_whole(tmp_path / "file", "a" * 50_000)

    def write(letter):
        try:
            for _ in range(100):
                write_whole(tmp_path / "file", letter * 50_000)
        except Exception as error:
            faults.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in letters]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert (tmp_path / "file").read_text() in ("a" * 50_000, "b" * 50_000)
    assert not faults
    assert names(tmp_path) == ["file"]


def test_json_has_one_form_and_a_value_that_has_none_changes_nothing(tmp_path):
    write_json(tmp_path / "file", {"b": 1, "a": ["ä", 0.1]})
    text = '{\n  "a": [\n    "\\u00e4",\n    0.1\n  ],\n  "b": 1\n}\n'
    assert (tmp_path / "file").read_text() == text
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_text() == text
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000, "1" * 5_000])
def test_json_that_can_not_be_read_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json(json.dumps({"a": None}).encode()) == {"a": None}


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("durable", [False, True])
def test_folder_appears_with_all_its_files_and_replaces_what_was_there(tmp_path, name, durable):
    for content in ("former", "new"):
        with whole_folder(tmp_path / "above" / name, durable=durable) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
            assert not (tmp_path / "above" / name / "sub" / content).exists()
        assert names(tmp_path / "above") == [name]
        assert names(tmp_path / "above" / name / "sub") == [content]


@pytest.mark.parametrize("former", ["file", "link"])
def test_folder_replaces_a_file_or_a_link(tmp_path, former):
    (tmp_path / "far").mkdir()
    (tmp_path / "folder").touch() if former == "file" else (tmp_path / "folder").symlink_to("far")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
    assert names(tmp_path) == ["far", "folder"]
    assert not names(tmp_path / "far")
    assert names(tmp_path / "folder") == ["a"]


def test_fault_while_a_folder_is_filled_leaves_the_former_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="fault"), whole_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
        raise ValueError("fault")
    assert names(tmp_path) == ["folder"]
    assert not names(tmp_path / "folder")


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("with whole_folder(Path('folder')) as folder:\n    (folder / 'new').touch()\n    die()", ["former"]),
        # The new one has its name; what was there is not removed yet.
        ("shutil.rmtree = die\nwith whole_folder(Path('folder')) as folder:\n    (folder / 'new').touch()", ["new"]),
    ],
)
def test_killed_writer_of_a_folder_leaves_a_whole_one_and_the_next_one_clears_up(tmp_path, program, found):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "former").touch()
    run_killed(program, tmp_path)
    assert names(tmp_path / "folder") == found
    assert len(names(tmp_path)) == 2
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "next").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["next"]


def test_what_was_there_is_back_when_the_new_folder_can_not_be_renamed(tmp_path):
    (tmp_path / "folder" / "former").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["former"]


def test_durable_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        flushed.append((path.name, (tmp_path / "folder").exists()))

    monkeypatch.setattr(files, "flush", flush)
    with whole_folder(tmp_path / "folder", durable=True) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").touch()
    assert flushed == [("sub", False), ("a", False), (folder.name, False), (tmp_path.name, True)]


def test_unfinished_folder_is_removed_in_any_case(tmp_path):
    with unfinished_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
    with pytest.raises(ValueError), unfinished_folder(tmp_path / "folder"):
        raise ValueError
    assert names(tmp_path) == []


def test_kill_while_a_folder_is_discarded_leaves_nothing_of_its_name(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    number = run_killed('shutil.rmtree = die\ndiscard(Path("folder"))', tmp_path)
    assert names(tmp_path) == [f".folder.{number}.replaced"]
    (tmp_path / "folder").mkdir()
    discard(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
