"""What a run records, as plain values."""

import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.errors import IntegrityError
from ava_core.runtime.digests import digest_value
from ava_core.tracking.commit import read_commit
from ava_core.tracking.records import batches, describe_corpus, flatten, read_history

# A busy machine is no fault of the code.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
keys = st.text("abcxyz_", min_size=1, max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=3)
configs = st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, max_size=3), max_size=4)


@relaxed
@given(configs)
def test_flattened_configuration_has_one_text_per_leaf(config):
    flat = flatten(config)
    count = sum(len(value) if isinstance(value, dict) else 1 for value in config.values())
    assert len(flat) == count
    assert all(isinstance(value, str) for value in flat.values())


def test_keys_are_dotted_and_lists_are_json():
    assert flatten({"a": {"b": [1, "x"], "c": None}, "d": "text"}) == {"a.b": '[1, "x"]', "a.c": "null", "d": "text"}


@relaxed
@given(configs)
def test_order_of_keys_does_not_change_the_digest(config):
    assert digest_value(config) == digest_value(dict(reversed(config.items())))


@relaxed
@given(st.lists(st.integers(), max_size=30), st.integers(1, 7))
def test_batches_keep_order_and_size(items, size):
    parts = list(batches(items, size))
    assert [item for part in parts for item in part] == items
    assert all(0 < len(part) <= size for part in parts)


def test_history_becomes_a_series_per_figure_without_what_is_no_number(tmp_path):
    file = tmp_path / "history.jsonl"
    file.write_text('{"step": 1, "loss": 2.5, "note": "x", "ok": true}\n{"step": 2, "loss": NaN, "rate": 1}\n')
    assert [tuple(point) for point in read_history(file)] == [("loss", 2.5, 1), ("rate", 1.0, 2)]


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": null}'])
def test_broken_line_of_the_history_is_named(tmp_path, line):
    file = tmp_path / "history.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(IntegrityError, match=r"history.jsonl:2: is no history record: restore the folder or"):
        read_history(file)


def test_corpus_is_named_by_its_sources_and_shows_no_folder_of_this_machine():
    sources = [{"corpus": "shakespeare", "path": None}, {"path": "/home/me/plays/more.txt", "corpus": None}]
    corpus = describe_corpus(sources, "d" * 64, {"train_tokens": 5.0, "train_loss": 1.0})
    assert (corpus.name, corpus.counts) == ("shakespeare+more.txt", {"train_tokens": 5.0})


def test_commit_of_a_repository_and_none_elsewhere(tmp_path):
    assert read_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = read_commit(tmp_path)
    assert commit is not None and len(commit) == 40
