"""Splits: nothing lost, nothing twice, no part empty, shares kept as near as documents allow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.config.data import SplitConfig
from ava_core.data.splitting import split_documents
from ava_core.errors import AvaError

texts = st.lists(st.text(min_size=1, max_size=60), min_size=3, max_size=40)


def pieces_of(corpus, split):
    return [corpus[piece.document][piece.start : piece.end] for piece in split]


@settings(deadline=None)
@given(texts.filter(lambda corpus: len(set(corpus)) >= 3), st.sampled_from(["ava", "other"]))
def test_every_document_is_in_exactly_one_split(corpus, salt):
    splits = split_documents(corpus, SplitConfig(salt=salt))
    chosen = [piece.document for split in splits.values() for piece in split]
    assert sorted(chosen) == list(range(len(corpus)))
    assert all(splits.values())
    contents = [set(pieces_of(corpus, split)) for split in splits.values()]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])


@settings(deadline=None)
@given(texts.filter(lambda corpus: len(set(corpus)) >= 3), st.randoms(use_true_random=False))
def test_split_of_a_document_doesn_t_depend_on_the_order(corpus, random):
    shuffled = list(corpus)
    random.shuffle(shuffled)
    one, two = split_documents(corpus, SplitConfig()), split_documents(shuffled, SplitConfig())
    for name in one:
        assert sorted(pieces_of(corpus, one[name])) == sorted(pieces_of(shuffled, two[name]))


def test_shares_are_kept_for_many_documents():
    corpus = [f"{number} " * 50 for number in range(2000)]
    splits = split_documents(corpus, SplitConfig(train=0.8, validation=0.15))
    sizes = {name: sum(map(len, pieces_of(corpus, split))) for name, split in splits.items()}
    total = sum(sizes.values())
    assert sizes["train"] / total == pytest.approx(0.8, abs=0.001)
    assert sizes["validation"] / total == pytest.approx(0.15, abs=0.001)


def test_three_documents_give_one_to_each_split_whatever_their_sizes():
    corpus = ["a" * 10_000, "b", "c"]
    assert [len(split) for split in split_documents(corpus, SplitConfig()).values()] == [1, 1, 1]


def test_another_salt_gives_another_split():
    corpus = [f"document {number}" for number in range(100)]
    first, second = split_documents(corpus, SplitConfig()), split_documents(corpus, SplitConfig(salt="pepper"))
    assert {piece.document for piece in first["test"]} != {piece.document for piece in second["test"]}


@pytest.mark.parametrize("corpus", [[], ["one"], ["one", "two"], ["one", "two", "two", "one"]])
def test_fewer_than_three_different_documents_are_refused(corpus):
    with pytest.raises(AvaError, match=r"different documents after cleaning.*data.split.by: position"):
        split_documents(corpus, SplitConfig())


@settings(deadline=None)
@given(st.lists(st.text(alphabet="aé🎭\n", min_size=1, max_size=80), min_size=1, max_size=6))
def test_cut_by_position_keeps_the_text_and_its_order(corpus):
    total = sum(len(text.encode()) for text in corpus)
    config = SplitConfig(by="position", train=0.5, validation=0.25)
    try:
        splits = split_documents(corpus, config)
    except AvaError:
        assert total < 16  # a character has 4 bytes: more text always fills all parts
        return
    parts = ["".join(pieces_of(corpus, split)) for split in splits.values()]
    assert "".join(parts) == "".join(corpus)
    assert 0 <= int(total * 0.5) - len(parts[0].encode()) < 4
    assert 0 <= int(total * 0.75) - len((parts[0] + parts[1]).encode()) < 4


def test_one_long_text_is_cut_at_exactly_the_shares_of_its_bytes():
    text = "0123456789" * 100
    splits = split_documents([text], SplitConfig(by="position"))
    assert [pieces_of([text], split)[0] for split in splits.values()] == [text[:900], text[900:950], text[950:]]


def test_too_little_text_to_cut_is_refused():
    with pytest.raises(AvaError, match="2 bytes after cleaning"):
        split_documents(["ab"], SplitConfig(by="position"))
