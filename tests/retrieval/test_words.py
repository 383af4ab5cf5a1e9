"""What counts as a word."""

import pytest

from ava_core.retrieval.words import words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("To be, or NOT to-be: 42nd_time", ["to", "be", "or", "not", "to", "be", "42nd", "time"]),
        ("Straße ÉCOLE", ["strasse", "école"]),
        ("e\u0301cole", ["école"]),  # the same word, written with a combining accent
        ("\ufb01ne", ["fine"]),  # a ligature
        ("Привет, МИР", ["привет", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are part of their word
        ("東京に行く abc", ["東", "京", "に", "行", "く", "abc"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("... \u0000 \u200b !", []),
        ("", []),
    ],
)
def test_text_of_any_script_is_divided_into_words_without_case(text: str, found: list[str]) -> None:
    assert words(text) == found
