import dataclasses
import json
import os
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.errors import AvaError, IntegrityError
from ava_core.runtime import digests, manifest
from ava_core.runtime.digests import digest_file, digest_tree, digest_value

FIELDS = {
    "step": "train",
    "key": "k",
    "version": "0",
    "code": "c",
    "config": "d",
    "choices": {},
    "inputs": {},
    "threads": 1,
    "ranks": 1,
}


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.bin").write_bytes(b"0123456789")
    (folder / "metrics.json").write_text("{}")
    manifest.write(folder, manifest.Manifest(**FIELDS, files=manifest.describe_files(folder)))
    return folder


def test_a_whole_output_verifies(output):
    assert manifest.verify(output, "train") == manifest.read(output)


@pytest.mark.parametrize("position", range(10))
def test_any_flipped_byte_is_refused_by_name(output, position):
    path = output / "a" / "x.bin"
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"a/x\.bin: its bytes are not those in the manifest"):
        manifest.verify(output)


def test_whatever_byte_of_a_manifest_is_flipped_it_is_refused(output):
    """In fields that nothing reads, in spaces, in its own digest: flips of each byte, and what editors do."""
    path = output / "manifest.json"
    written = path.read_bytes()
    changed = [
        written[:at] + bytes([written[at] ^ mask]) + written[at + 1 :]
        for at in range(len(written))
        for mask in (1 << at % 8, 0x20)  # capitals
    ]
    edited = [written[:-1], written + b"\n", written.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + written]
    edited += [
        written.replace(b'"key": "k"', field)
        for field in (b'"key": "k", "key": "k"', b'"key":  "k"', b'"key": "\\u006b"')
    ]
    for content in (*changed, *edited):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=rf"^{path}: [^\n]*restore the folder or run its step again$"):
            manifest.read(output)
    path.write_bytes(written)
    manifest.verify(output)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 1},
        {"key": None},
        {"version": []},
        {"threads": True},
        {"ranks": 1.0},
        {"choices": {"scheme": 8}},
        {"inputs": {"model": None}},
        {"made_from": ["model"]},
        {"files": {"x": {"bytes": "3", "sha256": "0"}}},
        {"files": {"x": {"bytes": 3, "sha256": "0", "mode": 7}}},
    ],
)
def test_field_of_another_type_is_refused_though_the_digest_is_right(output, changes):
    manifest.write(output, dataclasses.replace(manifest.read(output), **changes))
    with pytest.raises(IntegrityError, match=r"manifest\.json: can't be read \(\w+"):
        manifest.read(output)


def test_manifest_of_an_earlier_version_is_said_to_be_one(output):
    fields = json.loads((output / "manifest.json").read_text())
    del fields["sha256"], fields["made_from"]
    (output / "manifest.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    with pytest.raises(IntegrityError, match="has no digest over itself: it is of an earlier version of Ava"):
        manifest.read(output)


def test_nesting_without_end_is_refused_in_one_line(output):
    (output / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(IntegrityError, match=r"manifest\.json: can't be read"):
        manifest.read(output)


def test_manifest_is_replaced_and_nothing_is_written_through_a_link(output, tmp_path):
    """As DVC leaves an output: files of its cache, under other names."""
    kept, path = tmp_path / "cached", output / "manifest.json"
    path.rename(kept)
    path.symlink_to(kept)
    before = kept.read_bytes()
    manifest.write(output, dataclasses.replace(manifest.read(output), key="other"))
    assert kept.read_bytes() == before and not path.is_symlink()
    assert manifest.verify(output).key == "other"


def links_to_a_folder(path):
    path.symlink_to(path.parent / "a", target_is_directory=True)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (links_to_a_folder, "a link to a folder or to nothing"),
        (lambda path: path.symlink_to("/nowhere"), "a link to a folder or to nothing"),
        (lambda path: path.symlink_to(path), "a link to a folder or to nothing"),
        (os.mkfifo, "neither a file nor a folder"),
    ],
)
def test_what_is_no_file_is_refused_and_not_passed_over(output, make, what):
    """A folder behind a link would be read by whoever follows it, and verified by nobody."""
    make(output / "added")
    for look in (manifest.verify, manifest.describe_files, digest_tree):
        with pytest.raises(IntegrityError, match=rf"{output}/added: is {what}: remove it"):
            look(output)


def test_file_that_is_a_link_is_verified_by_what_it_holds(output, tmp_path):
    path, elsewhere = output / "a" / "x.bin", tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert manifest.verify(output) == manifest.read(output)
    elsewhere.write_bytes(b"0123456780")
    with pytest.raises(IntegrityError, match=r"a/x\.bin: its bytes"):
        manifest.verify(output)


def age(folder):
    """As if written long ago, as far as the clock of this process goes."""
    return mock.patch("time.time_ns", lambda: max(path.stat().st_ctime_ns for path in folder.rglob("*")) + 10**10)


def test_folder_is_read_once_however_often_it_is_verified(output):
    with age(output), mock.patch.object(digests, "digest_file", side_effect=digest_file) as read:
        for _ in range(3):
            manifest.verify(output)
    assert read.call_count == 2  # a/x.bin and metrics.json


def test_changed_file_is_read_again_though_its_time_and_size_are_the_old_ones(output):
    path = output / "a" / "x.bin"
    with age(output):
        manifest.verify(output)
        before = path.stat()
        path.write_bytes(b"012345678X")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(IntegrityError, match=r"a/x\.bin: its bytes"):
            manifest.verify(output)


def test_folder_that_changes_while_it_is_read_is_refused(output):
    path = output / "a" / "x.bin"
    with pytest.raises(IntegrityError, match=r"a/x\.bin: its bytes"), manifest.verified(output):
        path.write_bytes(b"012345678X")
    path.write_bytes(b"0123456789")
    with pytest.raises(IntegrityError, match="was changed while the folder was read"), manifest.verified(output):
        manifest.write(output, dataclasses.replace(manifest.read(output), key="other"))
    with manifest.verified(output):
        pass


def test_folder_without_a_manifest_is_told_of(tmp_path, caplog):
    with manifest.verified(tmp_path):
        pass
    assert caplog.messages == [f"{tmp_path}: holds no manifest.json: what it holds isn't verified"]
    (tmp_path / "manifest.json").symlink_to("/nowhere")  # there, whatever it leads to
    with (
        pytest.raises(AvaError, match=r"holds no manifest\.json: it is not a finished output"),
        manifest.verified(tmp_path),
    ):
        pass


def test_the_output_of_another_step_is_refused(output):
    with pytest.raises(AvaError, match="is the output of `ava train`, not of `ava preprocess`"):
        manifest.verify(output, "preprocess")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({**FIELDS, "files": []}),
        json.dumps({**FIELDS, "files": {"x": 3}}),
        json.dumps({**FIELDS, "files": {"x": {"bytes": 3}}}),
        json.dumps({**FIELDS, "inputs": None}),
        json.dumps({**FIELDS, "surprise": 1}),
        '{"key": ' + "[" * 100_000,
        '{"threads": ' + "9" * 5000 + "}",
    ],
)
def test_a_manifest_that_cannot_be_understood_is_an_integrity_error(output, text):
    (output / "manifest.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json: can't be read .*run its step again"):
        manifest.verify(output)


def test_a_folder_without_manifest_is_no_finished_output(tmp_path):
    with pytest.raises(AvaError, match=r"holds no manifest\.json"):
        manifest.read(tmp_path)
    with pytest.raises(AvaError, match="no such folder"):
        manifest.read(tmp_path / "nowhere")


def test_the_digest_of_the_contents_does_not_depend_on_how_they_were_made(output):
    present = manifest.read(output)
    assert dataclasses.replace(present, key="other", code="other").digest == present.digest
    assert dataclasses.replace(present, files={}).digest != present.digest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, min_size=2))
def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys(value):
    assert digest_value(value) == digest_value(dict(reversed(value.items())))
    assert digest_value(value) == digest_value(json.loads(json.dumps(value)))


def test_a_tree_has_another_digest_when_a_name_or_a_byte_changes(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("1")
    before = digest_tree(tree)
    (tree / "a").rename(tree / "b")
    renamed = digest_tree(tree)
    (tree / "b").write_text("2")
    assert len({before, renamed, digest_tree(tree)}) == 3
    assert digest_tree(tree / "b") == digest_value([[".", digest_file(tree / "b")]])
