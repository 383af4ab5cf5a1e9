"""What the runners share: the configuration as text, commit, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ava_core.config import resolve
from pipelines import command_line

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    [],
    ["preset=cpu/tiny"],
    ["preset=cpu/small", "train.learning_rate=0.5", "evaluate.prompts=[\"O, what's 'here'?\\n#: x\"]"],
    ["preset=gpu/base", "model.capacity_factor=null"],
    ["preset=auto", "seed=3"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda value: " ".join(value)[:30] or "none")
def test_text_resolves_to_the_same_values_elsewhere(overrides, tmp_path, monkeypatch):
    params = tmp_path / "params.yaml"
    params.write_text("quantize:\n  schemes: [int8, int4]\n")
    config = resolve(params=params, overrides=overrides).config
    text = command_line.params_yaml(config)
    monkeypatch.chdir(tmp_path)
    again = resolve(params_text=text).config
    assert again.model_copy(update={"preset": None}) == config.model_copy(update={"preset": None})


def test_preset_is_kept_as_a_record_unless_it_would_change_a_value():
    assert (
        yaml.safe_load(command_line.params_yaml(resolve(overrides=["preset=cpu/tiny"]).config))["preset"] == "cpu/tiny"
    )
    assert yaml.safe_load(command_line.params_yaml(resolve(overrides=["preset=auto"]).config))["preset"] is None


def test_digest_is_of_the_values_and_not_of_where_they_stand(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("seed: 3\n")
    assert command_line.digest(resolve(params=params).config) == command_line.digest(
        resolve(overrides=["seed=3"]).config
    )
    assert command_line.digest(resolve().config) != command_line.digest(resolve(overrides=["seed=3"]).config)


def test_commit_is_empty_without_git(tmp_path):
    assert command_line.head_commit(tmp_path) == ""


def test_commit_of_a_repository_is_read(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert command_line.head_commit(tmp_path) == ""
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert command_line.head_commit(tmp_path) == head


FAILURES = [
    ("raise AvaError('model: broken: mend it')", 1, "test: model: broken: mend it\n"),
    ("raise ConfigError('a: wrong', 'b: wrong')", 2, "test: a: wrong\ntest: b: wrong\n"),
    ("raise ConfigError('--host http://ava:pass/word@h: wrong')", 2, "test: --host http://***@h: wrong\n"),
    ("open('/nowhere/file')", 1, "test: /nowhere/file: No such file or directory\n"),
    ("os.kill(os.getpid(), 2); time.sleep(9)", 130, "test: interrupted: run the same command again to go on\n"),
    ("os.kill(os.getpid(), 15); time.sleep(9)", 143, "test: terminated: run the same command again to go on\n"),
    ("raise KeyboardInterrupt", 130, "test: interrupted: run the same command again to go on\n"),
    ("return 1", 1, ""),
    ("return None", 0, ""),
]


@pytest.mark.parametrize(("body", "code", "lines"), FAILURES)
def test_exit_codes_and_lines(body, code, lines):
    program = (
        "import os, time\nfrom ava_core.errors import AvaError, ConfigError\nfrom pipelines import command_line\n"
        f"def main():\n    {body}\ncommand_line.run('test', main)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert (answer.returncode, answer.stderr) == (code, lines)
