"""BM25 that is built on disk, beside bm25s's own in memory."""

from pathlib import Path

import bm25s
import numpy as np
import pytest

from ava_core.errors import IntegrityError
from ava_core.retrieval.lexical import MOST_WORDS, Lexical
from ava_core.retrieval.lexical_build import LexicalWriter
from ava_core.retrieval.words import words
from tests.retrieval.made import contents, passages


def built(folder: Path, texts: list[str], at_once: int = 100, **sizes: int) -> Path:
    scratch = folder.with_name(f"{folder.name}-scratch")
    for made in (folder, scratch):
        made.mkdir()
    writer = LexicalWriter(folder, scratch, **sizes)
    for first in range(0, len(texts), at_once):
        writer.add(texts[first : first + at_once])
    writer.close()
    assert not list(scratch.iterdir())
    return folder


TEXTS = [passage.text for passage in passages(600)] + ["", "...", "only1 only1 only2"]
QUERIES = [
    "w1 w2 w3",
    "w1 w1 w7 nowhere",
    "nr17",
    "only2 w4 only1",
    "nowhere",
    "",
    " ".join(f"w{n}" for n in range(60)),
]


@pytest.fixture(scope="module")
def in_memory() -> bm25s.BM25:
    retriever = bm25s.BM25()
    retriever.index([words(text) for text in TEXTS], show_progress=False)
    return retriever


# Runs of 500 words and blocks of 50 pairs: many runs are merged, and a frequent word exceeds a block by itself.
@pytest.mark.parametrize("sizes", [{}, {"words_per_run": 500, "pairs_per_block": 50}], ids=["one run", "many runs"])
def test_scores_are_those_of_an_index_that_bm25s_builds_in_memory(
    tmp_path: Path, in_memory: bm25s.BM25, sizes: dict[str, int]
) -> None:
    index = Lexical(built(tmp_path / "index", TEXTS, **sizes))
    for query in QUERIES:
        known = [word for word in words(query) if word in in_memory.vocab_dict]
        expected = in_memory.get_scores(known) if known else np.zeros(len(TEXTS), np.float32)
        order = np.lexsort((np.arange(len(TEXTS)), -expected))[:10]
        order = order[expected[order] > 0]
        found, scores = index.search(query, len(TEXTS))
        assert len(found) == np.count_nonzero(expected)
        np.testing.assert_allclose(scores, expected[found], rtol=1e-6)
        np.testing.assert_allclose(scores[: len(order)], expected[order], rtol=1e-6)


def test_bm25s_reads_what_was_built(tmp_path: Path, in_memory: bm25s.BM25) -> None:
    read = bm25s.BM25.load(built(tmp_path / "index", TEXTS), mmap=True, load_vocab=False)
    assert read.scores["num_docs"] == len(TEXTS)
    assert len(read.scores["data"]) == len(in_memory.scores["data"])


def test_bytes_do_not_depend_on_runs_and_blocks(tmp_path: Path) -> None:
    one = contents(built(tmp_path / "one", TEXTS))
    assert one == contents(built(tmp_path / "many", TEXTS, at_once=7, words_per_run=300, pairs_per_block=40))


def test_passages_that_are_not_allowed_are_left_out_before_ranking(tmp_path: Path) -> None:
    index = Lexical(built(tmp_path / "index", TEXTS))
    every, _ = index.search("w1 w2", len(TEXTS))
    allowed = np.zeros(len(TEXTS), bool)
    allowed[every[3:]] = True
    assert index.search("w1 w2", 5, allowed)[0].tolist() == every[3:8].tolist()


def test_equal_scores_are_in_the_order_of_the_passages(tmp_path: Path) -> None:
    index = Lexical(built(tmp_path / "index", ["other"] * 3000 + ["same text"] * 2000))
    assert index.search("text", 5)[0].tolist() == [3000, 3001, 3002, 3003, 3004]


def test_the_order_of_a_querys_words_does_not_change_scores(tmp_path: Path) -> None:
    index = Lexical(built(tmp_path / "index", TEXTS))
    forth, back = index.search("w1 w2 w3 w4 w5", 50), index.search("w5 w4 w3 w2 w1", 50)
    assert np.array_equal(forth[0], back[0])
    assert np.array_equal(forth[1], back[1])


def test_of_a_query_as_long_as_a_book_the_rarest_words_count(tmp_path: Path) -> None:
    texts = [f"common c{number} rare{number}" for number in range(2 * MOST_WORDS)]
    texts += [f"common c{number}" for number in range(2 * MOST_WORDS)]
    index = Lexical(built(tmp_path / "index", texts))
    rare = " ".join(f"rare{number}" for number in range(MOST_WORDS))
    found, scores = index.search(f"{'common ' * 10_000}{rare}", len(texts))
    assert len(found) == MOST_WORDS
    assert np.array_equal(scores, index.search(rare, len(texts))[1])


def test_an_index_without_a_word_finds_nothing(tmp_path: Path) -> None:
    index = Lexical(built(tmp_path / "index", ["", "..."]))
    assert len(index.search("anything", 3)[0]) == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = built(tmp_path / "index", TEXTS)
    (folder / "words.numbers.npy").unlink()
    with pytest.raises(IntegrityError, match=r"words\.numbers\.npy"):
        Lexical(folder)
