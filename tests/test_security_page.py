"""SECURITY.md speaks of what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
PATHS = {path for path in re.findall(r"`([\w./-]+)`", TEXT) if "/" in path and not path.startswith("build/")}


@pytest.mark.parametrize(
    "path", sorted({*PATHS, *re.findall(r"\btests/[\w./-]+", TEXT), *re.findall(r"\]\(([^)]+)\)", TEXT)})
)
def test_place_that_it_names_exists(path):
    assert (ROOT / path).exists()


def test_every_boundary_says_what_is_done_and_where():
    rows = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert len(rows) > 10
    for boundary, *cells in rows:
        assert all(cell.strip() for cell in cells), boundary
    assert all("`" in where for *_, where in rows[1:])
