"""The adapter that runs components as host processes: real kfp.local runs of the real IR, with a fake `ava`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ava_core.errors import AvaError
from pipelines.host_runner import container_tasks

ORDER = ["preprocess", "train", "quantize-int4", "quantize-int8", "evaluate", "register", "record-outcome"]


def steps(names) -> list[str]:
    """Names without their scheme: kfp.local takes independent tasks in the order of a protobuf map, not a fixed one."""
    return [name.removesuffix("-int8").removesuffix("-int4") for name in names]


CALLS = steps(ORDER)


def called(host) -> list[str]:
    return [entry["step"] for entry in host.journal]


def test_every_component_runs_once_and_in_order(host, ir):
    import yaml

    result = host.run()
    assert result.succeeded and result.fault == "" and result.skipped == []
    names = [task.name for task in result.tasks]
    assert steps(names) == CALLS == steps(container_tasks(yaml.safe_load(ir)))
    assert sorted(names) == sorted(ORDER) == sorted(container_tasks(yaml.safe_load(ir)))
    assert called(host) == CALLS
    assert all(task.status == "computed" for task in result.tasks)


def test_outputs_of_one_step_are_inputs_of_the_next(host):
    result = host.run()
    flags = {entry["step"]: entry["flags"] for entry in host.journal}
    assert flags["preprocess"]["data"] == str(host.folder)
    assert flags["train"]["shards"] == str(result.folder("preprocess") / "shards")
    assert flags["evaluate"]["model"] == str(result.folder("train") / "model")
    assert flags["register"]["evaluation"] == str(result.folder("evaluate") / "evaluation")
    # of the two --quantized flags the fake keeps the later one
    assert flags["register"]["quantized"] == str(result.folder("quantize-int4") / "quantized")


def test_parameters_reach_the_command_whole(host):
    text = 'preset: cpu/tiny\nevaluate:\n  prompts: ["O \'tis \\"{x}\\"; $HOME `id`"]\n'
    assert host.run(params_yaml=text, git_commit="c0ffee").succeeded
    assert {entry["flags"].get("params-yaml", text) for entry in host.journal} == {text}
    register = next(entry for entry in host.journal if entry["step"] == "register")
    assert register["environment"]["AVA_GIT_COMMIT"] == "c0ffee"


FAULTS = [
    ("exit code", "train", "exit code 3: ava: train.learning_rate is too large"),
    ("signal", "train", "SIGKILL"),
    ("silent success", "train", "wrote no executor_output.json"),
    ("no executor output", "train", "wrote no executor_output.json"),
    ("torn executor output", "train", "executor_output.json can't be read"),
    ("executor output of another kind", "train", "executor_output.json can't be read"),
    ("no output", "train", "its output model is missing"),
    ("no address", "train", "gives no address for model"),
    ("unlisted output", "train", "lists no model"),
    ("output that nobody asked for", "train", "lists other, which the component doesn't have"),
    ("no metrics", "train", "its metrics are empty"),
    ("metric is NaN", "train", "its metrics are corrupt: loss"),
    ("metric is text", "train", "its metrics are corrupt: loss"),
    ("torn metrics.json", "train", "its output model is corrupt: metrics.json"),
    ("no report", "evaluate", "its output report is missing"),
    ("no parameter", "register", "its output parameter promoted is missing"),
    ("broken parameter", "register", "its output parameter promoted = 'perhaps'"),
    ("parameter of another type", "register", "its output parameter model_version"),
    ("exit code", "preprocess", "exit code 3"),
    ("no output", "quantize", "its output quantized is missing"),
]


@pytest.mark.parametrize(("fault", "step", "line"), FAULTS, ids=[f"{step}: {fault}" for fault, step, _ in FAULTS])
def test_a_step_that_breaks_its_promise_fails_the_run(host, fault, step, line):
    result = host.run(f"{step}={fault}")
    assert not result.succeeded and result.fault
    assert result.failed.name.startswith(step) and line in result.failed.fault
    assert any(shown.startswith(f"{result.failed.name}: failed after") for shown in host.lines)
    # nothing that needs the broken output ran, and the exit handler ran last
    position = CALLS.index(step)
    assert called(host)[: position + 1] == CALLS[: position + 1]
    assert called(host)[-1] == "record-outcome" and "register" not in called(host)[position + 1 :]
    assert set(result.skipped) == set(ORDER) - {task.name for task in result.tasks}


def test_exit_handler_is_told_of_success_and_of_failure(host):
    host.run()
    host.run("evaluate=exit code")
    states = [json.loads(e["flags"]["status"])["state"] for e in host.journal if e["step"] == "record-outcome"]
    assert states == ["SUCCEEDED", "FAILED"]


def test_failing_exit_handler_fails_the_run(host):
    result = host.run("record-outcome=exit code")
    assert not result.succeeded and result.failed.name == "record-outcome"


def test_missing_program_is_a_failure_with_its_name(host):
    (host.folder / "bin" / "ava").unlink()
    host.environment["PATH"] = str(host.folder / "bin")
    result = host.run()
    assert not result.succeeded
    assert result.failed.name == "preprocess"
    assert result.failed.fault == "ava: no such program on PATH: `make setup` installs it"


def test_environment_that_a_task_can_not_get_fails_that_task(host):
    def environment(task):
        if task == "register":
            raise AvaError("mlflow: the server ended with code 1")
        return {**host.environment, "MARK": task}

    result = host.run(environment=environment)
    assert result.failed.name == "register" and "the server ended with code 1" in result.failed.fault
    marks = [entry["environment"]["MARK"] for entry in host.journal]
    assert steps(marks) == [*CALLS[:5], "record-outcome"]


def test_finished_work_taken_again_is_reported_as_reused(host):
    result = host.run("train=reuse")
    assert {task.name: task.status for task in result.tasks}["train"] == "reused"
    assert [task.status for task in result.tasks].count("reused") == 1


def test_lines_are_shown_live_and_kept_in_the_step_s_log(host):
    result = host.run("train=exit code")
    assert "  train | train at work" in host.lines
    expected = "train at work\nava: train.learning_rate is too large\n"
    assert result.failed.log.read_text() == expected
    assert host.lines.index("train: started") < host.lines.index("  train | train at work")


def test_kfp_local_says_nothing_on_our_output(host, capfd):
    host.run("train=exit code")
    assert capfd.readouterr() == ("", "")
    assert "preprocess" in (host.folder / "runs" / "kfp.log").read_text()


def test_steps_run_in_process_groups_of_their_own(host):
    host.run()
    groups = [entry["group"] for entry in host.journal]
    assert os.getpgid(0) not in groups and len(set(groups)) == len(groups)


def test_process_that_a_step_leaves_running_is_ended_and_does_not_hold_the_run(host):
    started = time.monotonic()
    assert host.run("train=orphan").succeeded
    assert time.monotonic() - started < 30
    assert gone(int((host.folder / "child.pid").read_text()))


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from pipelines import command_line
from pipelines.host_runner import HostRunner
folder = Path(sys.argv[1])
environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "FAKE_JOURNAL": f"{folder}/journal.jsonl",
               "FAKE_FAULT": "train=hang"}
def show(line):
    if "hanging" in line:
        os.kill(os.getpid(), int(sys.argv[2]))
runner = HostRunner((folder / "ir.yaml").read_text(), folder / "runs", lambda task: environment, show)
command_line.run("test", lambda: runner.run({"params_yaml": "", "data_uri": "."}) and 0)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_the_step_with_its_children(host, number, code):
    (host.folder / "ir.yaml").write_text(host.ir)
    command = [sys.executable, "-c", INTERRUPTED, str(host.folder), str(int(number))]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    assert called(host) == ["preprocess", "train"]
    assert gone(host.journal[-1]["pid"]) and gone(int((host.folder / "child.pid").read_text()))


def test_what_the_adapter_relies_on_in_kfp_local(host):
    """The map from runner to handler reads the module's attribute when a task starts; we put back what was there."""
    from kfp.local import config, subprocess_task_handler, task_dispatcher

    original = subprocess_task_handler.SubprocessTaskHandler
    assert task_dispatcher.subprocess_task_handler is subprocess_task_handler
    host.run()
    assert subprocess_task_handler.SubprocessTaskHandler is original
    assert config.LocalExecutionConfig.instance is None


def gone(pid: int) -> bool:
    """Whether a process has ended, within ten seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
