"""Whose code runs, where the current folder is a checkout too."""

import shutil

from ava_core.cli.checkout import foreign_checkout


def test_copy_that_dvc_made_for_an_experiment_may_run_the_checkouts_code_while_that_is_the_same(tmp_path):
    original = tmp_path / "ava"
    (original / "ava_core" / "cli").mkdir(parents=True)
    (original / "pyproject.toml").touch()
    module = original / "ava_core" / "cli" / "main.py"
    module.write_text("a = 1\n")
    copy = original / ".dvc" / "tmp" / "exps" / "tmp1234"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns(".dvc"))
    package = original / "ava_core"
    assert foreign_checkout(original, package) is None
    assert foreign_checkout(copy, package) is None
    module.write_text("a = 2\n")
    assert foreign_checkout(copy, package) == (
        f"runs the code in {original}, which has changed since DVC copied it for this experiment"
    )
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    assert foreign_checkout(other, package) == (
        f"runs the code in {original}, not that in {other}: run `make setup` here and use .venv/bin/ava"
    )
