"""An index folder: searched, brought up to date, and refused where it isn't whole."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.retrieval import folder as folder_module
from ava_core.retrieval.arrays import ArrayWriter
from ava_core.retrieval.building import building_index
from ava_core.retrieval.folder import Index
from ava_core.retrieval.manifest import read_manifest, write_manifest
from tests.retrieval.made import DIMENSION, build, contents, passages, unit_vectors

COUNT = 300
GIVEN = passages(COUNT, labels=("", "", "staff"))
VECTORS = unit_vectors(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("retrieval") / "index", GIVEN, VECTORS, settings={"length": 90})


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "index")


def test_index_json_says_what_the_index_is_of(folder: Path) -> None:
    manifest = Index.open(folder, embedding="test", verify=True).manifest
    assert (manifest.embedding, manifest.dimension, manifest.passages, manifest.documents) == ("test", 16, COUNT, 60)
    assert manifest.settings == {"length": 90}
    assert set(manifest.files) == set(contents(folder)) - {"index.json"}


def test_a_passage_is_found_by_words_by_meaning_and_by_both(folder: Path) -> None:
    index = Index.open(folder)
    by_words, *_ = index.search("nr123", None, 3, mode="lexical", labels={"staff"})
    assert (by_words.passage, by_words.lexical_rank, by_words.dense_rank) == (123, 1, None)
    by_meaning, *_ = index.search("", VECTORS[77], 3, mode="dense", labels={"staff"})
    assert (by_meaning.passage, by_meaning.lexical_rank, by_meaning.dense_rank) == (77, None, 1)
    both = index.search("nr123", VECTORS[123], 3, labels={"staff"})
    assert (both[0].passage, both[0].lexical_rank, both[0].dense_rank) == (123, 1, 1)
    others = {hit.passage for hit in index.search("nr123", VECTORS[77], 2, labels={"staff"})}
    assert others == {77, 123}
    assert index.passages[123] == GIVEN[123]


def test_meaning_decides_where_the_words_are_in_no_passage(folder: Path) -> None:
    found = Index.open(folder).search("unheard", VECTORS[77], 2, labels={"staff"})
    assert (found[0].passage, found[0].lexical_rank, found[0].dense_rank) == (77, None, 1)


@pytest.mark.parametrize("mode", ["hybrid", "lexical", "dense"])
def test_passages_with_a_label_are_found_by_those_who_have_it(folder: Path, mode: str) -> None:
    index = Index.open(folder)
    query, secret = GIVEN[2].text, 2
    seen = {hit.passage for hit in index.search(query, VECTORS[2], COUNT, mode=mode)}
    assert seen and not any(GIVEN[number].label for number in seen)
    assert index.search(query, VECTORS[2], 1, mode=mode, labels={"staff", "unknown"})[0].passage == secret
    # Others' places are taken by what may be seen: the filter comes before the ranking.
    assert len(index.search(query, VECTORS[2], 10, mode=mode)) == 10
    assert index.search(query, VECTORS[2], 1, mode=mode)[0].score > 0


def test_who_may_see_nothing_finds_nothing(tmp_path: Path) -> None:
    index = Index.open(build(tmp_path / "index", passages(20, labels=["staff"]), unit_vectors(20)))
    assert index.search("w1 w2", VECTORS[0], 5) == []
    assert len(index.search("w1 w2", VECTORS[0], 5, labels=["staff"])) == 5


def test_an_index_without_vectors_is_searched_by_words(tmp_path: Path) -> None:
    index = Index.open(build(tmp_path / "index", GIVEN[:20], None))
    assert index.vectors is None
    assert index.search("nr4", None, 1, mode="lexical")[0].passage == 4
    with pytest.raises(AvaError, match="'hybrid' needs vectors"):
        index.search("nr4", VECTORS[0], 1)


def test_the_same_passages_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "other name", GIVEN, VECTORS, at_once=7, settings={"length": 90})
    assert contents(again) == contents(folder)


def test_an_index_brought_up_to_date_equals_one_built_anew(folder: Path, tmp_path: Path) -> None:
    """Documents are removed, replaced and added; vectors of what didn't change come from the former index."""
    changed = GIVEN[:50] + passages(20, seed=5) + GIVEN[80:] + passages(10, seed=6)
    embedded = np.concatenate([VECTORS[:50], unit_vectors(20, seed=5), VECTORS[80:], unit_vectors(10, seed=6)])
    anew = build(tmp_path / "anew", changed, embedded)
    known, taken = Index.open(folder).known_vectors(changed)
    assert known.tolist() == [True] * 50 + [False] * 20 + [True] * 220 + [False] * 10
    vectors = np.empty((len(changed), DIMENSION), np.float32)
    vectors[known], vectors[~known] = taken, embedded[~known]
    assert contents(build(tmp_path / "updated", changed, vectors)) == contents(anew)


def test_an_index_can_be_replaced_while_it_is_open(copy: Path) -> None:
    index = Index.open(copy)
    build(copy, passages(20, seed=9), unit_vectors(20, seed=9))
    assert index.search("nr123", None, 1, mode="lexical")[0].passage == 123
    assert index.passages[123] == GIVEN[123]
    assert len(Index.open(copy)) == 20


def test_every_file_that_is_missing_or_was_cut_is_named(copy: Path) -> None:
    for name, content in contents(copy).items():
        file = copy / name
        file.write_bytes(content[:-2])
        with pytest.raises(IntegrityError) as cut:
            Index.open(copy)
        file.unlink()
        with pytest.raises((IntegrityError, ConfigError)) as missing:
            Index.open(copy)
        for refused in (cut, missing):
            assert file.name in str(refused.value)
            assert "ava index" in str(refused.value)
            assert "\n" not in str(refused.value)
        file.write_bytes(content)
    Index.open(copy, verify=True)


def test_every_file_with_a_flipped_bit_is_named(copy: Path) -> None:
    for name, content in contents(copy).items():
        if name == "index.json":
            continue
        middle = len(content) // 2
        (copy / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(IntegrityError, match="SHA-256") as refused:
            Index.open(copy, verify=True)
        assert name in str(refused.value)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 1}', b'{"format": 1, "files": {"a": 3}}', b"\xff"])
def test_an_index_json_of_something_else_is_refused(copy: Path, content: bytes) -> None:
    (copy / "index.json").write_bytes(content)
    with pytest.raises(AvaError, match="anew"):
        Index.open(copy)


def test_an_index_of_another_version_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(AvaError, match="format 99, and this Ava reads 1"):
        Index.open(copy)


def test_an_index_of_another_embedding_is_refused(folder: Path) -> None:
    with pytest.raises(AvaError, match=r"embedding 'test', not 'other'.*retrieval\.embedding"):
        Index.open(folder, embedding="other")


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="is no index"):
            Index.open(path)


@pytest.mark.parametrize("top_k", [0, -1])
def test_at_least_one_passage_must_be_wanted(folder: Path, top_k: int) -> None:
    with pytest.raises(AvaError, match=f"top_k is {top_k}"):
        Index.open(folder).search("w1", None, top_k, mode="lexical")


def test_more_can_be_wanted_than_there_are(folder: Path) -> None:
    assert len(Index.open(folder).search("w1", VECTORS[0], 10_000, mode="dense", labels=["staff"])) == COUNT


def test_queries_of_no_and_of_100000_characters_are_answered(folder: Path) -> None:
    index = Index.open(folder)
    assert index.search("", None, 5, mode="lexical") == []
    assert [hit.lexical_rank for hit in index.search("", VECTORS[0], 5)] == [None] * 5
    assert len(index.search("w1 w2 nr3 \x00 <|end|> " * 5000, VECTORS[0], 5)) == 5


def test_without_a_passage_there_is_no_index(copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(AvaError, match="no passages"):
        build(copy, [], np.zeros((0, DIMENSION), np.float32))
    assert contents(copy) == before
    assert [item.name for item in copy.parent.iterdir()] == ["index"]


def test_as_many_vectors_as_passages_are_wanted(tmp_path: Path) -> None:
    for vectors in (VECTORS[:2], None):
        with (
            pytest.raises(AvaError, match="vectors for 3 passages"),
            building_index(tmp_path / "index", embedding="test", dimension=DIMENSION, settings={}) as builder,
        ):
            builder.add(GIVEN[:3], vectors)
    assert not (tmp_path / "index").exists()


def test_a_second_builder_is_told_so(copy: Path) -> None:
    def open_builder():
        return building_index(copy, embedding="test", dimension=DIMENSION, settings={})

    with open_builder() as builder:
        builder.add(GIVEN[:9], VECTORS[:9])
        with pytest.raises(AvaError, match="being built by another process"), open_builder():
            pass
    assert len(Index.open(copy, verify=True)) == 9


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_former_index_stays(copy: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(self: ArrayWriter, values: np.ndarray) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as full, pytest.raises(AvaError, match="the disk is full: free some space"):
        full.setattr(ArrayWriter, "append", refuse)
        build(copy, GIVEN[:9], VECTORS[:9])
    assert len(Index.open(copy, verify=True)) == COUNT
    assert [item.name for item in copy.parent.iterdir()] == ["index"]


def test_what_a_killed_builder_left_is_removed_by_the_next(copy: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from tests.retrieval.test_folder import *\n"
        "with building_index(Path(sys.argv[1]), embedding='test', dimension=DIMENSION, settings={}) as builder:\n"
        "    builder.add(GIVEN[:9], VECTORS[:9]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", killed, copy], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(copy.parent.iterdir())) > 2
    assert len(Index.open(copy, verify=True)) == COUNT
    build(copy, GIVEN[:9], VECTORS[:9])
    assert [item.name for item in copy.parent.iterdir()] == ["index"]


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Replaced(folder_module.Lexical):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(path)
            if len(opened) == 1:
                build(copy, GIVEN[:9], VECTORS[:9])

    monkeypatch.setattr(folder_module, "Lexical", Replaced)
    assert len(Index.open(copy)) == 9
    assert len(opened) == 2


def test_parts_of_different_indexes_are_refused(copy: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "other", GIVEN[:20], VECTORS[:20])
    for part in ("lexical", "vectors", "passages"):
        mixed = shutil.copytree(copy, tmp_path / f"mixed {part}")
        shutil.rmtree(mixed / part)
        shutil.copytree(other / part, mixed / part)
        write_manifest(mixed, read_manifest(copy))
        with pytest.raises(AvaError, match="parts of different indexes"):
            Index.open(mixed)


def test_many_sets_of_labels_are_answered_one_after_another(tmp_path: Path) -> None:
    names = [f"group{number}" for number in range(40)]
    index = Index.open(build(tmp_path / "index", passages(40, labels=names), unit_vectors(40)))
    for _ in range(2):
        for number, name in enumerate(names):
            assert [hit.passage for hit in index.search("", VECTORS[0], 5, labels=[name])] == [number]
