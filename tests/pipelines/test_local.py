"""`python -m pipelines.local`: a whole run with a fake `ava`, and what it prints at the end."""

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from ava_core.errors import AvaError, ConfigError
from pipelines import local, mlflow_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_local(host, monkeypatch, capfd, tmp_path):
    """Run main() with the fake `ava` and without a server; gives the exit code and what was printed."""
    params = tmp_path / "params.yaml"
    params.write_text("")
    real = local.task_environment
    monkeypatch.setattr(mlflow_server, "ensure", lambda: "http://127.0.0.1:5000")
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(local, "task_environment", lambda *given: {**real(*given), **host.environment})

    def call(*flags: str, **environment: str) -> tuple[int, str]:
        host.environment.update(environment)
        code = local.main(["--params", str(params), "--runs", str(tmp_path / "runs"), *flags])
        output = capfd.readouterr()
        assert output.err == ""
        return code, output.out

    return call


def lines_about(output: str, label: str) -> list[str]:
    return [line.removeprefix(label).strip() for line in output.splitlines() if line.startswith(f"{label}  ")]


def test_summary_names_figures_version_samples_and_addresses(run_local, tmp_path):
    code, output = run_local()
    assert code == 0
    assert lines_about(output, "test split") == ["2.0000 bits per byte, perplexity 31.50 per token"]
    (int8,) = lines_about(output, "int8 model")
    assert int8.startswith("7.4 MB (3.9 times smaller), +0.0012 bits per byte, same next token 99.12%")
    assert "same experts 99.87%" in int8 and "0.0312" in int8
    assert lines_about(output, "registered") == ["ava-moe version 7: @challenger, @champion"]
    assert lines_about(output, "gate") == ["passed: promoted to champion"]
    for prompt in ("To be, or", "ROMEO", "Enter"):
        assert f"    {prompt} nucleus float.\n" in output
    assert "int8." not in output and "wherefore" not in output
    assert lines_about(output, "MLflow run") == ["http://127.0.0.1:5000/#/experiments/1/runs/0123"]
    assert lines_about(output, "registry page") == ["http://127.0.0.1:5000/#/models/ava-moe/versions/7"]
    (report,) = lines_about(output, "report")
    assert report.startswith(f"file://{tmp_path}/runs/ava-") and Path(report.removeprefix("file://")).is_file()


def test_summary_has_a_line_for_each_step_with_status_and_seconds(run_local):
    _, output = run_local(FAKE_FAULT="train=reuse")
    table = output[output.index("\nstep ") :].splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in table[2:10] if line}
    assert rows["train"][0] == "reused" and rows["evaluate"][0] == "computed"
    assert all(float(row[-1]) >= 0 for row in rows.values())
    assert set(rows) >= {"preprocess", "train", "quantize-int8", "evaluate", "register", "record-outcome", "total"}


def test_refused_promotion_ends_green_and_says_which_bound_failed_by_how_much(run_local):
    code, output = run_local(FAKE_VALUE="2.4321")
    assert code == 0
    assert lines_about(output, "gate") == [
        "refused: test_bits_per_byte 2.4321 is 0.1321 above 2.3000 (max_bits_per_byte)"
    ]
    assert lines_about(output, "registered") == ["ava-moe version 7: @challenger"]


def test_failed_step_ends_red_with_its_name_log_and_the_way_on(run_local, tmp_path):
    code, output = run_local("--set", "seed=7", FAKE_FAULT="train=exit code")
    assert code == 1
    assert "train failed: exit code 3: ava: train.learning_rate is too large" in output
    log = next((tmp_path / "runs").glob("ava-*/train/console.log"))
    assert f"the end of {log}:\n    train at work\n    ava: train.learning_rate is too large\n" in output
    assert (
        f"{sys.executable} -m pipelines.local --params {tmp_path}/params.yaml --runs {tmp_path}/runs --set seed=7"
        in output
    )
    assert "evaluate        not run" in output
    assert "registered" not in output


def test_configuration_reaches_the_steps_resolved(run_local, host):
    import yaml

    run_local("--set", "train.steps=123")
    sent = yaml.safe_load(host.journal[0]["flags"]["params-yaml"])
    assert sent["train"]["steps"] == 123 and sent["tokenizer"]["vocab_size"] > 0
    assert host.journal[0]["flags"]["data"] == str(Path("data/raw").absolute())


def test_server_is_waited_for_by_register_alone(monkeypatch):
    never: Future[str] = Future()
    for task in ("preprocess", "train", "quantize-int8", "evaluate", "record-outcome"):
        assert "MLFLOW_TRACKING_URI" not in local.task_environment(task, {}, never)
    started: Future[str] = Future()
    started.set_result("http://127.0.0.1:1")
    assert local.task_environment("register", {}, started)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1"


def test_server_that_does_not_start_fails_register_and_keeps_the_rest(run_local, monkeypatch):
    def ensure():
        raise AvaError("mlflow: the server ended with code 1: no space left")

    monkeypatch.setattr(mlflow_server, "ensure", ensure)
    code, output = run_local()
    assert code == 1
    assert "register failed:" in output and "mlflow: the server ended with code 1: no space left" in output
    assert "evaluate        computed" in output


def test_server_of_the_environment_that_does_not_answer_is_refused_before_any_work(host, monkeypatch, tmp_path):
    monkeypatch.setenv("AVA_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setattr(local, "task_environment", lambda *_: host.environment)
    with pytest.raises(AvaError, match=r"AVA_TRACKING_URI = http://127\.0\.0\.1:9: doesn't answer"):
        local.main(["--params", str(tmp_path / "params.yaml"), "--runs", str(tmp_path / "runs")])
    assert host.journal == []


def test_only_the_last_runs_are_kept_and_nothing_else_is_removed(tmp_path):
    names = [f"ava-2026-01-{day:02}-00-00-00-000000" for day in range(1, 6)]
    for name in [*names, "ava-notes"]:
        (tmp_path / name).mkdir()
    # room for the run that starts now
    assert [path.name for path in local.prune_runs(tmp_path, kept=3)] == names[:3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names[3:], "ava-notes"]
    assert local.prune_runs(tmp_path, kept=3) == []


def test_steps_find_this_environment_s_ava_first_and_share_one_work_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = local.task_environment("train", {"PATH": "/usr/bin", "HOME": "/root"}, Future())
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["AVA_WORK"] == str(tmp_path / ".ava" / "work") and environment["HOME"] == "/root"
    elsewhere = local.task_environment("train", {"AVA_WORK": "/scratch/work"}, Future())
    assert elsewhere["AVA_WORK"] == "/scratch/work"


def test_wrong_configuration_is_refused_before_any_work(run_local, host, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.steps = -1"):
        run_local("--set", "train.steps=-1")
    assert host.journal == [] and not (tmp_path / "runs").exists()


def test_wrong_configuration_exits_2_without_starting_a_server(tmp_path):
    command = [sys.executable, "-m", "pipelines.local", "--params", str(tmp_path / "none.yaml")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"pipelines.local: {tmp_path}/none.yaml: no such file\n"
