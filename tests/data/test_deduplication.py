"""Deduplication: what repeats an earlier document goes, what doesn't stays, always the same ones."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.config.data import DeduplicationConfig
from ava_core.data.deduplication import choose_bands, deduplicate, shingles

WORDS = [f"word{number}" for number in range(5000)]


def text_of(seed: int, words: int = 400) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, share: float, seed: int = 0) -> str:
    """`text` with the words of its last `share` replaced."""
    words = text.split()
    kept = words[: round(len(words) * (1 - share))]
    return " ".join(kept + random.Random(seed).choices(WORDS, k=len(words) - len(kept)))


def jaccard(left: str, right: str, words: int = 5) -> float:
    a, b = set(shingles(left, words)), set(shingles(right, words))
    return len(a & b) / len(a | b)


def run(texts, **fields):
    return deduplicate(((f"d{i}", text) for i, text in enumerate(texts)), DeduplicationConfig(**fields))


def test_equal_documents_go_and_the_first_stays():
    result = run([text_of(1), text_of(2), text_of(1), text_of(1)], near=False)
    assert (result.kept, result.exact, result.near) == ([0, 1], 2, 0)
    assert result.bytes_removed == 2 * len(text_of(1))
    assert result.samples[0] == {"document": "d2", "repeats": "d0", "similarity": 1.0}


def test_near_duplicate_goes_and_a_half_changed_document_stays():
    original = text_of(1)
    close, far = changed(original, 0.05), changed(original, 0.5)
    assert jaccard(original, close) > 0.85
    assert jaccard(original, far) < 0.5
    result = run([original, far, close])
    assert (result.kept, result.exact, result.near) == ([0, 1], 0, 1)
    assert result.samples[0]["repeats"] == "d0"


def test_case_and_punctuation_don_t_hide_a_near_duplicate():
    original = text_of(3)
    assert run([original, original.upper().replace(" ", ", ")]).kept == [0]


def test_switches_turn_each_kind_off():
    texts = [text_of(1), text_of(1), changed(text_of(1), 0.03)]
    assert run(texts, exact=False, near=False).kept == [0, 1, 2]
    assert run(texts, exact=True, near=False).kept == [0, 2]
    assert run(texts, exact=False, near=True).kept == [0]


def test_threshold_of_one_removes_equal_sets_of_shingles_only():
    texts = [text_of(1), text_of(1).upper(), changed(text_of(1), 0.02)]
    assert run(texts, threshold=1.0).kept == [0, 2]


def test_short_documents_are_compared_as_a_whole():
    assert run(["Exit", "Exeunt", "exit!"]).kept == [0, 1]


@pytest.mark.parametrize("permutations", [2, 3, 16, 128, 256])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.8, 0.97, 1.0])
def test_every_threshold_gives_a_usable_index(threshold, permutations):
    bands, rows = choose_bands(threshold, permutations)
    assert bands >= 2 and rows >= 1 and bands * rows <= permutations
    if rows > 1:
        assert 1 - (1 - threshold**rows) ** bands >= 0.95


def test_most_documents_just_above_the_threshold_are_found():
    found = 0
    for seed in range(20):
        original = text_of(seed, 1000)
        close = changed(original, 0.07, seed + 1000)
        assert 0.8 < jaccard(original, close) < 0.9
        found += len(run([original, close]).kept) == 1
    assert found >= 17


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_one_document_of_each_group_stays(seeds):
    result = run([text_of(seed, 60) for seed in seeds])
    assert [seeds[position] for position in result.kept] == list(dict.fromkeys(seeds))
    assert result.exact + result.near == len(seeds) - len(result.kept)
