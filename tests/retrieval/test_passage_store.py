"""Passages on disk."""

from pathlib import Path

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.retrieval import passage_store
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.passage_store import PassageStore, PassageWriter
from tests.retrieval.made import passages


def stored(folder: Path, given: list[Passage]) -> PassageStore:
    folder.mkdir()
    writer = PassageWriter(folder)
    for first in range(0, len(given), 7):
        writer.add(given[first : first + 7])
    writer.close()
    return PassageStore(folder)


def test_passages_are_read_as_they_were_written(tmp_path: Path) -> None:
    odd = [
        Passage("line\nbreaks\u2028 and \x00 <|end|> \ud800", "näme \n", 3, 9, "頭", "ab" * 32, "staff"),
        Passage("", "", 0, 0),
    ]
    given = passages(9000) + odd  # more than are buffered at once
    store = stored(tmp_path / "store", given)
    assert len(store) == len(given)
    assert [store[number] for number in (0, 4999, 8999, 9000, 9001)] == [given[n] for n in (0, 4999, 8999, 9000, 9001)]
    assert list(store) == given


def test_documents_are_listed_with_their_passages(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", passages(12))
    assert list(store.documents()) == [(f"doc{n}", f"{n:064x}", n * 5, min(12, n * 5 + 5)) for n in range(3)]


def test_a_passage_is_found_by_its_digest(tmp_path: Path) -> None:
    given = passages(50) + passages(50)
    store = stored(tmp_path / "store", given)
    missing = Passage("elsewhere", "doc", 0, 9)
    assert store.find([given[7].digest, missing.digest, given[49].digest]).tolist() == [7, -1, 49]


def test_the_digest_tells_heading_from_text() -> None:
    assert Passage("b c", "d", 0, 3, "a").digest != Passage("c", "d", 0, 3, "a b").digest
    assert Passage("b", "d", 0, 1, "a").digest == Passage("b", "e", 5, 6, "a", "00", "staff").digest


def test_passages_are_visible_by_label(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", passages(6, labels=("", "staff", "board")))
    seen = {labels: store.visible(labels) for labels in [(), ("staff",), ("unknown",)]}
    assert {labels: mask.tolist() for labels, mask in seen.items() if mask is not None} == {
        (): [True, False, False] * 2,
        ("staff",): [True, True, False] * 2,
        ("unknown",): [True, False, False] * 2,
    }
    assert store.visible({"staff", "board"}) is None


def test_more_labels_than_a_number_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_store, "MOST_LABELS", 2)
    with pytest.raises(AvaError, match="more than 2 access labels"):
        stored(tmp_path / "store", passages(6, labels=("", "staff", "board")))


def test_a_number_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", passages(3))
    for number in (3, -1):
        with pytest.raises(IndexError):
            store[number]


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.offsets.npy", "document.npy", "labels.json"])
def test_a_missing_or_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    stored(tmp_path / "store", passages(30))
    file = tmp_path / "store" / name
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match="anew"):
            PassageStore(tmp_path / "store")
    file.unlink()
    with pytest.raises(IntegrityError, match="anew"):
        PassageStore(tmp_path / "store")
