"""Entries of `evaluate.tasks`, as a person writes them and as they are refused."""

import pytest

from ava_core.config import resolve
from ava_core.errors import ConfigError


def tasks(text):
    return resolve(overrides=[f"evaluate.tasks={text}"]).config.evaluate.tasks


def test_names_and_paths_stand_for_entries():
    first, second, third = tasks("[next_line, mine/own.yaml, {name: arc_easy, num_fewshot: 5, limit: 100}]")
    assert (first.name, first.path) == ("next_line", None)
    assert (second.name, second.path) == (None, "mine/own.yaml")
    assert (third.num_fewshot, third.limit) == (5, 100)


def test_null_and_nothing_are_no_tasks():
    assert tasks("null") == tasks("[]") == resolve().config.evaluate.tasks == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{name: next_line, limit: 0}]", r"tasks\.0\.limit = 0: must be > 0"),
        ("[{name: next_line, path: a.yaml}]", "both name and path"),
        ("[{limit: 3}]", "neither name nor path"),
        ("[next_line, {name: next_line, limit: 5}]", "next_line: is there 2 times"),
        ("[{name: arc_easy, allow_code: true}]", "allow_code = true: only for a file"),
        ("[{name: next_line, num_fewshot: 2}]", "num_fewshot = 2: next_line has its own context"),
        ("[{nam: next_line}]", "nam: unknown key"),
        ("next_line", r'evaluate\.tasks = "next_line": must be a list'),
    ],
)
def test_faulty_entry_is_refused_by_its_key(text, message):
    with pytest.raises(ConfigError, match=message):
        tasks(text)
