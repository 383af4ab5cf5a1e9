"""Our own tasks: what they ask, and that a seed gives the same questions."""

import pytest

from ava_core.errors import ConfigError
from ava_core.tasks.held_out import FEWEST_ITEMS, WORD, form_of, make_task

PROSE = "He came home late that night. Nobody had waited for him there. The dog slept by the cold fire, and the clock"
PROSE += " had stopped at nine. She would not have liked it at all. "
CODE = "def area(width, height):\n    total = width * height\n    return round(total, places)\n\n"


@pytest.fixture
def verse(corpus_text):
    return [corpus_text[:20_000], corpus_text[20_000:40_000]]


@pytest.mark.parametrize(("name", "choices"), [("swapped_words", 2), ("next_line", 4)])
def test_seed_gives_the_same_questions_and_a_limit_the_first_of_them(verse, name, choices):
    task = make_task(name, verse, seed=3, count=60)
    assert task == make_task(name, verse, seed=3, count=60)
    assert task.items[:25] == make_task(name, verse, seed=3, count=25).items
    assert task.items != make_task(name, verse, seed=4, count=60).items
    assert {len(item.choices) for item in task.items} == {choices}
    # The right answer is anywhere, or position alone would tell it.
    assert {item.label for item in task.items} == set(range(choices))


def test_right_answer_follows_its_context_in_the_text(verse):
    for name in ("swapped_words", "next_line"):
        for item in make_task(name, verse, seed=0, count=50).items:
            assert any(item.context + item.choices[item.label] in document for document in verse)


def test_two_words_and_nothing_else_are_swapped(verse):
    for item in make_task("swapped_words", verse, seed=0, count=50).items:
        right, wrong = item.choices[item.label], item.choices[1 - item.label]
        words, changed = WORD.findall(right), WORD.findall(wrong)
        assert sorted(words) == sorted(changed)
        assert sum(a != b for a, b in zip(words, changed, strict=True)) == 2
        assert WORD.sub("", right) == WORD.sub("", wrong)


def test_wrong_lines_are_others_of_about_the_same_length(verse):
    items = make_task("next_line", verse, seed=0, count=80).items
    for item in items:
        assert len(set(item.choices)) == 4
        assert not any(choice in item.context for index, choice in enumerate(item.choices) if index != item.label)
    gaps = [abs(len(choice) - len(item.choices[item.label])) for item in items for choice in item.choices]
    assert sum(gaps) / len(gaps) < 5


def test_form_is_that_of_the_text(verse):
    assert form_of(verse) == "lines"
    assert form_of([PROSE * 20]) == "sentences"
    assert form_of([CODE * 10]) == "code"
    wrapped = (PROSE * 10).split(" ")
    lines = [" ".join(wrapped[start : start + 12]) for start in range(0, len(wrapped), 12)]
    assert form_of(["\n".join(lines)]) == "sentences"


def test_identifiers_are_swapped_in_code():
    task = make_task("swapped_words", [CODE * 30], seed=0, count=20)
    assert task.form == "code"
    swapped = {choice for item in task.items for choice in item.choices}
    assert any("width * total" in choice or "total = height * width" in choice for choice in swapped)


def test_split_without_room_is_refused_by_the_tasks_name(verse):
    with pytest.raises(ConfigError, match=r"swapped_words: .* has room for \d+ questions, 20 are the fewest"):
        make_task("swapped_words", [verse[0][:600]], seed=0)
    some = make_task("swapped_words", [verse[0][:4_000]], seed=0)
    assert FEWEST_ITEMS <= len(some.items) < 100
