"""What is told of an exception in one line."""

import pytest

from ava_core.errors import first_line, typed_line


@pytest.mark.parametrize(
    ("error", "first", "typed"),
    [
        (ValueError("no such key\nTraceback"), "no such key", "ValueError: no such key"),
        (ValueError("\n  late"), "late", "ValueError: late"),
        (MemoryError(), "MemoryError", "MemoryError"),
        (RuntimeError("\n"), "RuntimeError", "RuntimeError"),
        (KeyError("key"), "'key'", "KeyError: 'key'"),
    ],
)
def test_first_line_is_told_or_the_type_where_there_is_none(error, first, typed):
    assert (first_line(error), typed_line(error)) == (first, typed)
