"""`python -m pipelines.local`: a whole run with a fake `ava`, and what it prints at the end."""

import os
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from ava_core.config import resolve
from ava_core.errors import AvaError, ConfigError
from pipelines import local, mlflow_server
from pipelines.host_executor import HostExecutor
from pipelines.processes import Process

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_local(host, monkeypatch, capfd, tmp_path):
    """Run main() with the fake `ava` and without a server; gives the exit code and what was printed."""
    params = tmp_path / "params.yaml"
    params.write_text("")
    real = local.task_variables
    monkeypatch.setattr(mlflow_server, "ensure", lambda: "http://127.0.0.1:5000")
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(local, "task_variables", lambda *given: {**real(*given), **host.variables})

    def call(*flags: str, **environment: str) -> tuple[int, str]:
        host.variables.update(environment)
        code = local.main(["--params", str(params), "--runs", str(tmp_path / "runs"), *flags])
        output = capfd.readouterr()
        assert output.err == ""
        return code, output.out

    return call


def lines_about(output: str, label: str) -> list[str]:
    """What the closing lines, after the table, say under a label."""
    closing = output.rpartition("\ntotal ")[2].splitlines()
    return [line.removeprefix(label).strip() for line in closing if line.startswith(f"{label}  ")]


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


def test_summary_has_a_line_for_each_step(run_local):
    _, output = run_local(FAKE_FAULT="train=reuse")
    table = output[output.index("\nstep ") :].split("\n\n")[0].splitlines()[1:]
    assert table[0].split() == ["step", "status", "seconds", "cached", "figures"]
    rows = {line.split()[0]: line.split()[1:] for line in table[1:]}
    assert set(rows) == {
        "preprocess",
        "train",
        "quantize-int8",
        "evaluate",
        "gate",
        "register",
        "record-outcome",
        "total",
    }
    assert rows.pop("total")[0].replace(".", "").isdigit()
    assert {row[0] for row in rows.values()} == {"succeeded"} and all(float(row[1]) >= 0 for row in rows.values())
    assert [name for name, row in rows.items() if row[2] == "yes"] == ["train"]
    assert rows["evaluate"][3:] == ["test_bits_per_byte", "2,", "test_perplexity", "31.5"]


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
    assert "evaluate        not run" in output and "gate            not run" in output
    assert "registered" not in output


def test_configuration_reaches_the_steps_resolved(run_local, host):
    run_local("--set", "train.steps=123")
    sent = yaml.safe_load(host.journal[0]["flags"]["params-yaml"])
    assert sent["train"]["steps"] == 123 and sent["tokenizer"]["vocab_size"] > 0
    assert host.journal[0]["flags"]["data"] == str(Path("data/raw").absolute())


def test_every_step_gets_the_server_and_only_some_can_not_do_without_it():
    started: Future[str] = Future()
    started.set_result("http://127.0.0.1:1")
    broken: Future[str] = Future()
    broken.set_exception(AvaError("mlflow: no space left"))
    for task in ("preprocess", "train", "quantize-int8", "evaluate", "record-outcome"):
        assert local.task_variables(task, {}, started)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1"
        assert "MLFLOW_TRACKING_URI" not in local.task_variables(task, {}, broken)
    for task in ("gate", "register"):
        with pytest.raises(AvaError, match="mlflow: no space left"):
            local.task_variables(task, {}, broken)


def test_step_that_is_only_recorded_does_not_wait_for_the_server_s_start(monkeypatch):
    never: Future[str] = Future()
    monkeypatch.setattr(mlflow_server, "read", lambda: None)
    assert "MLFLOW_TRACKING_URI" not in local.task_variables("preprocess", {}, never)
    us = mlflow_server.Server(**asdict(Process.of(os.getpid())), address="http://127.0.0.1:2")
    monkeypatch.setattr(mlflow_server, "read", lambda: us)
    assert local.task_variables("preprocess", {}, never)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"


def test_server_that_was_killed_meanwhile_is_started_again_before_a_step_that_needs_it(monkeypatch):
    started: Future[str] = Future()
    started.set_result("http://127.0.0.1:1")
    monkeypatch.setattr(mlflow_server, "ensure", lambda: "http://127.0.0.1:2")
    assert local.task_variables("gate", {}, started)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"
    assert local.task_variables("train", {}, started)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1"


def test_server_that_does_not_start_fails_the_gate_and_keeps_the_rest(run_local, monkeypatch):
    def ensure():
        raise AvaError("mlflow: the server ended with code 1: no space left")

    monkeypatch.setattr(mlflow_server, "ensure", ensure)
    code, output = run_local()
    assert code == 1
    assert "gate failed:" in output and "mlflow: the server ended with code 1: no space left" in output
    assert "evaluate        succeeded" in output


def test_server_of_the_environment_that_does_not_answer_is_refused_before_any_work(host, monkeypatch, tmp_path):
    monkeypatch.setenv("AVA_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text("")
    monkeypatch.setattr(local, "task_variables", lambda *_: host.variables)
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
    environment = HostExecutor({"PATH": "/usr/bin", "HOME": "/root"}).environment
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["HOME"] == "/root"
    server: Future[str] = Future()
    server.set_result("http://127.0.0.1:1")
    assert local.task_variables("train", {}, server)["AVA_WORK"] == str(tmp_path / ".ava" / "work")
    assert local.task_variables("train", {"AVA_WORK": "/scratch/work"}, server)["AVA_WORK"] == "/scratch/work"


@pytest.mark.slow
def test_from_a_step_forces_it_and_what_depends_on_it_and_going_on_does_not(run_local, host):
    code, output = run_local("--from", "evaluate", FAKE_FAULT="gate=exit code")
    assert code == 1
    assert [entry["component"] for entry in host.journal if entry["forced"]] == ["evaluate", "gate"]
    (again,) = [line for line in output.splitlines() if line.startswith("go on, once")]
    assert "pipelines.local" in again and "--from" not in again and "evaluate" not in again
    run_local("--from=train")
    assert [entry["component"] for entry in host.journal if entry["forced"]][2] == "train"


@pytest.mark.parametrize("flag", ["--from", "--timeout"])
def test_step_that_there_is_not_is_refused_before_any_work(run_local, host, flag):
    with pytest.raises(ConfigError, match=rf"{flag} trian: no such step: must be one of preprocess, train"):
        run_local(flag, "trian" if flag == "--from" else "trian=5")
    assert host.journal == []


@pytest.mark.slow
def test_step_past_its_time_limit_is_reported_as_failed(run_local):
    code, output = run_local("--timeout", "train=6", FAKE_FAULT="train=hang")
    assert code == 1 and "train failed: timed out after 6 s: hanging" in output


def test_sources_outside_of_the_corpus_are_found_for_the_containers():
    sources = [
        {"path": "verse.txt"},
        {"path": "/a/b/*.txt"},
        {"path": "/c/d.txt"},
        {"hub": "name"},
        {"corpus": "shakespeare"},
    ]
    config = resolve(params_text=yaml.safe_dump({"data": {"sources": sources}})).config
    assert local.absolute_sources(config) == [Path("/a/b"), Path("/c/d.txt")]


def test_store_that_no_container_sees_is_refused(run_local, monkeypatch):
    monkeypatch.setenv("AVA_TRACKING_URI", "sqlite:////somewhere/mlflow.db")
    with pytest.raises(ConfigError, match=r"AVA_TRACKING_URI = sqlite:\.\.\.: no container sees that store"):
        run_local("--runner", "docker")


def test_wrong_configuration_is_refused_before_any_work(run_local, host, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.steps = -1"):
        run_local("--set", "train.steps=-1")
    assert host.journal == [] and not (tmp_path / "runs").exists()


def test_wrong_configuration_exits_2_without_starting_a_server(tmp_path):
    command = [sys.executable, "-m", "pipelines.local", "--params", str(tmp_path / "none.yaml")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"pipelines.local: {tmp_path}/none.yaml: no such file\n"


def test_deleted_experiment_is_said_before_any_step_runs(mlflow_server, tmp_path, monkeypatch, capfd):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    client.delete_experiment(client.create_experiment("deleted-before"))
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    params = tmp_path / "params.yaml"
    params.write_text("register: {experiment: deleted-before}\n")
    with pytest.raises(
        AvaError, match=r"register.experiment = deleted-before: is deleted on http.*experiments restore"
    ):
        local.main(["--params", str(params), "--runs", str(tmp_path / "runs"), "--data", str(tmp_path)])
    assert not (tmp_path / "runs").exists()
