import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ava_core import __version__
from ava_core.cli.main import app
from ava_core.steps.table import STEPS

ROOT = Path(__file__).parents[2]


def test_help_names_every_step_and_tool(ava):
    result = ava("--help")
    assert result.code == 0
    commands = {line.split()[0] for line in result.out.partition("Commands:")[2].splitlines() if line.strip()}
    assert {*(spec.words[0] for spec in STEPS.values()), "generate", "show", "config"} <= commands
    assert "record-outcome" not in commands


@pytest.mark.parametrize("name", STEPS)
def test_every_step_takes_the_flags_of_the_contract(ava, name):
    shown = ava(STEPS[name].words[0], "--help").out
    contract = ["params", "params-yaml", "config", "set", "work", "force", "executor-output", "version", "output"]
    contract += ["log-level", "log-file", "quiet"]
    own = [item.name for item in (*STEPS[name].inputs, *STEPS[name].choices)]
    for flag in [*contract, *own]:
        assert f"--{flag}" in shown


def test_switches_are_off_and_have_no_opposite_but_the_log_of_requests():
    opposites = {
        (name, *parameter.secondary_opts)
        for name, command in typer.main.get_command(app).commands.items()
        for parameter in command.params
        if parameter.secondary_opts
    }
    assert opposites == {("serve", "--no-access-log")}


@pytest.mark.parametrize("arguments", [("--version",), ("train", "--version")])
def test_version_is_printed_whatever_else_is_missing(ava, arguments):
    assert ava(*arguments) == (0, f"ava {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nope",), "ava: No such command 'nope'"),
        (("train", "--foo"), "ava: No such option: --foo"),
        (("train", "--output", "x"), "ava: Missing option '--shards'"),
        (("train", "--shards"), "ava: Option '--shards' requires an argument"),
        (
            ("config", "show", "--set", "train.stepz=1"),
            "ava: --set: train.stepz: unknown key: did you mean train.steps?",
        ),
        (("config", "show", "--params", "none.yaml"), "ava: none.yaml: no such file"),
        (
            ("train", "--shards", "s", "--output", "o", "--log-level", "loud"),
            "ava: --log-level loud: must be one of debug",
        ),
        (
            ("quantize", "--model", "m", "--shards", "s", "--scheme", "int3", "--output", "o"),
            "ava: --scheme int3: must be one of fp32, int8, int4",
        ),
    ],
)
def test_wrong_input_exits_2_with_one_line_and_touches_nothing(ava, tmp_path, arguments, line):
    result = ava(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(line)
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_fault_of_a_configuration_gets_its_line(ava):
    result = ava("config", "show", "--set", "seed=-1", "--set", "train.steps=0")
    assert result.code == 2
    assert sorted(result.err.splitlines()) == [
        "ava: --set: seed = -1: must be >= 0",
        "ava: --set: train.steps = 0: must be > 0",
    ]


def test_params_as_file_and_as_text_at_once_are_refused(ava, tmp_path):
    (tmp_path / "p.yaml").write_text("seed: 1\n")
    flags = ("--shards", "s", "--output", "o", "--params", "p.yaml", "--params-yaml", "seed: 2")
    assert ava("train", *flags) == (2, "", "ava: --params and --params-yaml: give only one of them\n")


def test_an_unknown_variable_of_ours_is_refused_by_name(ava):
    result = ava("--help", AVA_SEED="3")
    assert result.code == 2
    assert result.err.startswith("ava: environment: AVA_SEED: unknown variable: there are AVA_TRACKING_URI, ")
    assert len(result.err.splitlines()) == 1
    assert ava("--help", AVA_LOG_LEVEL="debug").code == 0


@pytest.mark.parametrize("step", ["train", "sft", "quantize", "evaluate", "gate", "register"])
def test_a_missing_input_folder_exits_1_and_names_it(ava, step, tmp_path):
    flags = [item for port in STEPS[step].inputs if port.required for item in (f"--{port.name}", tmp_path / "gone")]
    flags += [item for choice in STEPS[step].choices for item in (f"--{choice.name}", choice.values[0])]
    result = ava(*STEPS[step].words, *flags, "--output", tmp_path / "out")
    assert result.code == 1
    assert result.err == f"ava: {tmp_path / 'gone'}: no such folder: give the output folder of an earlier step\n"
    assert not (tmp_path / "out").exists()


def test_a_secret_in_a_refused_value_is_not_repeated(ava):
    result = ava("config", "show", "--set", "train.steps=postgresql://me:hunter2@db/runs")
    assert result.code == 2
    assert "train.steps" in result.err
    assert "hunter2" not in result.err


def test_the_command_ends_with_the_code_of_the_failure():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AVA_")}
    command = [sys.executable, "-m", "ava_core.cli.main", "config", "show", "--set", "seed=x"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'ava: --set: seed = "x": must be a whole number\n'


def test_a_closed_pipe_is_no_failure_worth_a_traceback():
    command = f"{sys.executable} -m ava_core.cli.main config show | head -1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith("preset:")
    assert "Traceback" not in result.stderr
