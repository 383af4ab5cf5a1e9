"""What counts of a source file, and what it imports."""

import pytest

from ava_core.runtime.source import Import, read_source

MODULE = '''"""Says something."""
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ava_core.models import Model

log = logging.getLogger(__name__)
LIMIT = 3
"""How many."""


def halve(value: float, by: int = 2) -> str:
    """The half."""
    log.info("halving %s", value)
    return f"{value / by:{LIMIT}}" "!"
'''


def read(text, name="module.py", package="ava_core.data"):
    return read_source(text.encode(), name, package)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Says something."""', '"""Says something else."""'),
        ('"""Says something."""\n', ""),
        ('    """The half."""\n', "    # Only the half.\n\n"),
        ('"""How many."""', '"""How many digits."""'),
        ('log.info("halving %s", value)', 'log.debug("half of %s, by %d", value, by)'),
        ('    log.info("halving %s", value)\n', ""),
        ("from ava_core.models import Model", "from ava_core.models import Model, Router"),
        ("(value: float, by: int = 2)", "(\n    value: float,\n    by: int = 2,\n)"),
        ('"!"', "'!'"),
    ],
)
def test_what_changes_no_result_does_not_count(old, new):
    assert old in MODULE
    assert read(MODULE.replace(old, new)) == read(MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("LIMIT = 3", "LIMIT = True"),
        ("LIMIT = 3", "LIMIT = None"),
        ("LIMIT = 3", 'LIMIT = "3"'),
        ("LIMIT = 3", "LIMIT = ()"),
        ("by: int = 2", "by: int = 4"),
        ("halve", "half"),
        ("value / by", "value // by"),
        ('"!"', '"?"'),
        ('log.info("halving %s", value)', 'log.info("halving %s", next(value))'),
        ('log.info("halving %s", value)', "value -= 1"),
        ("log = logging.getLogger(__name__)", "log = Journal()"),
    ],
)
def test_what_can_change_a_result_counts(old, new):
    assert old in MODULE
    assert read(MODULE.replace(old, new)).digest != read(MODULE).digest


def test_log_line_counts_only_with_what_it_calls():
    one, other, more = (
        read(f"{MODULE}\nlog.info({text})").digest
        for text in ('"%d left", len(queue)', '"left: %d", len(queue)', '"%d left", queue.pop()')
    )
    assert one == other != more


def test_function_of_a_docstring_is_one_of_pass():
    assert read('def f():\n    """Nothing."""').digest == read("def f():\n    pass").digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import ava_core.data.shards", [Import("ava_core.data.shards")]),
        ("from ava_core.data import shards as s", [Import("ava_core.data", "shards", "s")]),
        ("from . import shards", [Import("ava_core.data", "shards", "shards")]),
        ("from .shards import Split", [Import("ava_core.data.shards", "Split", "Split")]),
        ("from ..models import Model", [Import("ava_core.models", "Model", "Model")]),
        ("def f():\n    import ava_core.models", [Import("ava_core.models")]),
        ("try:\n    import ava_core.models\nexcept ImportError:\n    pass", [Import("ava_core.models")]),
        ("HOMES = {'generate': 'ava_core.generation.decoding'}", [Import("ava_core.generation.decoding")]),
        ('import_module(f"ava_core.data.{kind}")', [Import("ava_core.data.")]),
        ("import json\nfrom pathlib import Path", []),
        ("if TYPE_CHECKING:\n    import ava_core.models\nelse:\n    import ava_core.data", [Import("ava_core.data")]),
    ],
)
def test_imports_are_found_wherever_they_are(text, expected):
    assert list(read(text).imports) == expected


def test_comments_of_cpp_do_not_count_and_all_else_does():
    native = '// Sums.\nint sum() { /* all\n of it */ return parse("// 3") + 4; }\n'
    assert read(native.replace("Sums", "Adds").replace("all", "half"), "sum.cpp") == read(native, "sum.cpp")
    for old, new in (("4", "5"), ("// 3", "// 2"), ("sum", "total")):
        assert read(native.replace(old, new), "sum.cpp").digest != read(native, "sum.cpp").digest


def test_every_byte_of_another_file_counts():
    assert read("# comment", "report.html.jinja").digest != read("", "report.html.jinja").digest


def test_digest_is_the_same_under_every_python():
    """Work folders are shared among hosts and containers, whose Pythons need not be the same."""
    assert read(MODULE).digest == "cc5485c732db24f08d1ea51fb345526229ff256ae2fd478d3913dff06229813f"
