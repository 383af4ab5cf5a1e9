"""A history that is read while it is written, cut and written anew."""

import json

from ava_core.tracking.feed import Feed


def write(path, steps, mode="a", **figures):
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": step, **figures}) + "\n" for step in steps)


def steps(feed):
    return [row["step"] for row in feed.read()]


def test_rows_come_once_and_only_when_they_are_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    feed = Feed(path, "step")
    assert steps(feed) == []
    write(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3')
    assert steps(feed) == [1, 2]
    assert steps(feed) == []
    with path.open("a") as file:
        file.write("}\n")
    assert steps(feed) == [3]


def test_history_that_was_cut_and_continued_gives_its_new_rows_alone(tmp_path):
    path = tmp_path / "history.jsonl"
    feed = Feed(path, "step")
    write(path, range(1, 8))
    assert steps(feed) == [1, 2, 3, 4, 5, 6, 7]
    write(path, range(1, 5), mode="w")
    assert steps(feed) == []
    write(path, range(5, 10))
    assert steps(feed) == [8, 9]


def test_history_that_grew_past_the_old_place_before_it_was_looked_at_is_noticed(tmp_path):
    path = tmp_path / "history.jsonl"
    feed = Feed(path, "step")
    write(path, range(1, 5))
    assert steps(feed) == [1, 2, 3, 4]
    write(path, range(1, 9), mode="w", loss=1.0)  # longer lines: the old offset is inside one
    assert steps(feed) == [5, 6, 7, 8]


def test_rows_that_the_server_has_and_lines_that_are_no_rows_are_passed_over(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3, "lo\n[]\n{"loss": 1}\n')
    write(path, [3, 4])
    assert steps(Feed(path, "step", after=1)) == [2, 3, 4]
