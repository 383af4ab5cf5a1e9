import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ava_core.errors import AvaError, IntegrityError
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_code, digest_file, digest_tree, digest_value
from ava_core.steps import STEPS

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


def test_the_digest_of_the_code_follows_the_sources_and_not_the_bytecode(tmp_path, monkeypatch):
    from ava_core.runtime import digests

    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    (tmp_path / "part" / "a.py").write_text("x = 1\n")
    (tmp_path / "part" / "report.html").write_text("<p>")
    monkeypatch.setattr(digests, "PACKAGE", tmp_path)

    def digest():
        digests.digest_code.cache_clear()
        return digests.digest_code(("part",))

    before = digest()
    (tmp_path / "part" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    assert digest() == before
    (tmp_path / "part" / "report.html").write_text("<b>")
    template = digest()
    (tmp_path / "part" / "a.py").write_text("x = 2\n")
    assert len({before, template, digest()}) == 3
    digests.digest_code.cache_clear()


@pytest.mark.parametrize("name", STEPS)
def test_the_code_of_every_step_can_be_digested(name):
    assert len(digest_code(STEPS[name].code)) == 64
