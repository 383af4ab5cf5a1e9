"""make's variables reach the programs as they were given: whole, unread by make and by the shell."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.errors import ConfigError
from pipelines import command_line, local
from pipelines.submit import flags as submit_flags

ROOT = Path(__file__).parents[2]
NAMES = ("PYTHON", "PARAMS", "PRESET", "SET", "RUNNER", "FROM", "JOBS", "TARGET", "HOST", "DATA_URI", "SUBMIT")
NASTY = "a 'b' \"c\" $HOME $(shell touch made) $$x `touch ran`; touch ran & #\n\\ ${PATH} *"


@pytest.fixture
def make(tmp_path):
    """Run make with a Python that only notes its arguments; gives them, one list per call of it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    note = tmp_path / "calls"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(note)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    python.chmod(0o755)

    def call(target: str, *given: str, **environment: str) -> list[list[str]]:
        note.unlink(missing_ok=True)
        outside = {name: value for name, value in os.environ.items() if name not in (*NAMES, "MAKEFLAGS", "MAKELEVEL")}
        command = ["make", "--no-print-directory", "-o", "setup", "-o", "data", "-o", "lint", target, *given]
        subprocess.run(
            command, cwd=tmp_path, check=True, timeout=120, env={**outside, **environment}, capture_output=True
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == [".venv", "Makefile", "calls"], "something else ran"
        return [json.loads(line) for line in note.read_text().splitlines()]

    return call


def test_variables_that_are_not_given_leave_their_flags_out(make):
    assert make("pipeline-local") == [["-m", "pipelines.local", "--runner", "host", "--params", "params.yaml"]]
    assert make("pipeline-submit") == [["-m", "pipelines.submit", "--params", "params.yaml"]]
    assert make("images") == [["-m", "pipelines.images"]]


EVERYWHERE = [
    ("pipeline-local", {"PARAMS": "--params", "SET": "--settings", "RUNNER": "--runner", "FROM": "--from"}),
    ("bench-pipeline", {"PARAMS": "--params", "SET": "--settings", "RUNNER": "--runner"}),
    ("pipeline-submit", {"PARAMS": "--params", "SET": "--settings", "HOST": "--host", "DATA_URI": "--data-uri"}),
    ("images", {"TARGET": "--target"}),
    ("test", {"JOBS": "-n"}),
]


@pytest.mark.parametrize("by", ["command line", "environment"])
@pytest.mark.parametrize(("target", "variables"), EVERYWHERE)
def test_text_reaches_the_program_whole_and_is_read_by_nobody_before(make, target, variables, by):
    given = {name: f"{name} {NASTY}" for name in variables}
    if by == "environment":
        (arguments,) = make(target, **given)
    else:
        (arguments,) = make(target, *(f"{name}={value}" for name, value in given.items()))
    for name, flag in variables.items():
        assert arguments[arguments.index(flag) + 1] == given[name]


def test_variables_given_empty_are_variables_not_given(make):
    assert make("pipeline-local", *(f"{name}=" for name in NAMES)) == [["-m", "pipelines.local"]]


def test_preset_and_further_flags_are_one_word_each(make):
    (arguments,) = make("pipeline-submit", "PRESET=cpu/tiny; touch ran", f"SUBMIT=--wait {NASTY}")
    assert arguments[-3:] == ["--set", "preset=cpu/tiny; touch ran", f"--flags=--wait {NASTY}"]


SETTINGS = [
    ("", []),
    (" train.steps=5   seed=1\n", ["train.steps=5", "seed=1"]),
    ('evaluate.prompts=["To be, or"]', ['evaluate.prompts=["To be, or"]']),
    (
        "evaluate.prompts=[\"x =1 seed=2 ]\", 'it''s a=b'] seed=3",
        ["evaluate.prompts=[\"x =1 seed=2 ]\", 'it''s a=b']", "seed=3"],
    ),
    ("register.experiment=my first one seed=3", ["register.experiment=my first one", "seed=3"]),
    ("data.sources=[{path: a b.txt, split: c=d}] seed=3", ["data.sources=[{path: a b.txt, split: c=d}]", "seed=3"]),
    ("evaluate.prompts=[it's] seed=3", ["evaluate.prompts=[it's]", "seed=3"]),
    ("train.steps= seed=3", ["train.steps=", "seed=3"]),
]


@pytest.mark.parametrize(("text", "settings"), SETTINGS)
def test_settings_are_divided_where_the_next_key_begins(text, settings):
    assert command_line.split_settings(text) == settings


@pytest.mark.parametrize("text", ["steps", "x train.steps=5", "=5", '"train.steps=5"'])
def test_settings_that_begin_with_no_key_are_refused(text):
    with pytest.raises(ConfigError, match=r"--settings .*: must be key\.path=value"):
        command_line.split_settings(text)


def test_settings_come_over_those_that_were_set_before_them():
    flags = local._parser().parse_args(
        [
            "--params",
            str(ROOT / "params.yaml"),
            "--set",
            "seed=1",
            "--settings",
            'evaluate.prompts=["To be, or"] seed=2',
        ]
    )
    config = command_line.resolve_flags(flags).config
    assert (config.evaluate.prompts, config.seed) == (["To be, or"], 2)


def test_flags_in_one_text_are_read_as_a_shell_would_read_them(capsys):
    host = ["--host", "http://h", "--data-uri", "s3://b/raw"]
    flags = submit_flags.parse([*host, "--flags=--wait --experiment 'my first one' --set seed=3"])
    assert (flags.wait, flags.experiment, flags.overrides, flags.host) == (True, "my first one", ["seed=3"], "http://h")
    with pytest.raises(SystemExit) as refused:
        submit_flags.parse([*host, "--flags=--experiment 'my"])
    assert refused.value.code == 2 and "No closing quotation" in capsys.readouterr().err
