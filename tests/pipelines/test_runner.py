"""The adapter to kfp.local: real runs of the real IR, with a fake `ava`, on the host and in containers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from ava_core.config.kubernetes import KubernetesConfig
from ava_core.errors import AvaError
from ava_core.interruption import Interrupted, handle_signals
from pipelines.compile import compile_pipeline
from pipelines.executor import Ending
from pipelines.graph import Graph
from pipelines.host_executor import HostExecutor
from pipelines.runner import LocalRunner
from tests.pipelines.conftest import EXECUTORS

ORDER = ["preprocess", "train", "quantize-int4", "quantize-int8", "evaluate", "gate", "register", "record-outcome"]
on_both_executors = pytest.mark.parametrize("fake", EXECUTORS, indirect=True)


def steps(names) -> list[str]:
    """Names without their scheme: kfp.local takes independent tasks in the order of a protobuf map, not a fixed one."""
    return [name.removesuffix("-int8").removesuffix("-int4") for name in names]


@on_both_executors
def test_every_component_runs_once_and_in_order(fake):
    result = fake.run()
    assert result.succeeded and result.fault == "" and result.skipped == []
    names = [task.name for task in result.tasks]
    assert steps(names) == steps(fake.called) == steps(fake.graph.order) == steps(ORDER)
    assert sorted(names) == sorted(fake.called) == sorted(fake.graph.order) == sorted(ORDER)
    assert not any(task.cached for task in result.tasks)


@on_both_executors
def test_outputs_of_one_step_are_inputs_of_the_next(fake):
    result = fake.run()
    flags = {entry["component"]: entry["flags"] for entry in fake.journal}
    assert flags["preprocess"]["data"] == str(fake.folder)
    assert flags["train"]["shards"] == str(result.folder("preprocess") / "shards")
    assert flags["evaluate"]["model"] == str(result.folder("train") / "model")
    assert flags["register"]["evaluation"] == str(result.folder("evaluate") / "evaluation")
    # of the two --quantized flags the fake keeps the later one
    assert flags["register"]["quantized"] == str(result.folder("quantize-int4") / "quantized")


def test_model_to_begin_from_reaches_the_training_and_no_other_step(host, tmp_path):
    host.graph = Graph(compile_pipeline(["int8"], begins_from_folder=True))
    parent = tmp_path / "parent"
    parent.mkdir()
    assert host.run(init_uri=str(parent)).succeeded
    assert {e["component"]: e["flags"]["init"] for e in host.journal if "init" in e["flags"]} == {"train": str(parent)}


@on_both_executors
def test_parameters_reach_the_command_whole(fake):
    text = 'preset: cpu/tiny\nevaluate:\n  prompts: ["O \'tis \\"{x}\\"; $HOME `id`"]\n'
    assert fake.run(params_yaml=text, git_commit="c0ffee").succeeded
    assert {entry["flags"].get("params-yaml", text) for entry in fake.journal} == {text}
    assert {entry["environment"]["AVA_GIT_COMMIT"] for entry in fake.journal} == {"c0ffee"}


@on_both_executors
def test_steps_of_a_run_know_its_name_and_another_run_has_another(fake):
    names = []
    for _ in range(2):
        result = fake.run()
        names.append(result.tasks[0].folder.parent.name)
    assert [entry["environment"]["AVA_PIPELINE_RUN"] for entry in fake.journal] == [
        name for name in names for _ in ORDER
    ]
    assert len(set(names)) == 2


@on_both_executors
def test_forced_steps_are_told_to_compute_anew_and_the_others_not(fake):
    fake.run(forced=fake.graph.from_on({"evaluate"}))
    forced = {entry["component"] for entry in fake.journal if entry["forced"]}
    assert forced == {"evaluate", "gate", "register"}


def test_exit_handler_is_told_of_success_and_of_failure(host):
    host.run()
    host.run("evaluate=exit code")
    states = [json.loads(e["flags"]["status"])["state"] for e in host.journal if e["component"] == "record-outcome"]
    assert states == ["SUCCEEDED", "FAILED"]


def test_failing_exit_handler_fails_the_run(host):
    result = host.run("record-outcome=exit code")
    assert not result.succeeded and result.failed.name == "record-outcome"


def test_missing_program_is_a_failure_with_its_name(host):
    (host.folder / "bin" / "ava").unlink()
    host.variables["PATH"] = str(host.folder / "bin")
    os.symlink("/usr/bin/env", host.folder / "bin" / "env")
    result = host.run()
    assert not result.succeeded
    assert result.failed.name == "preprocess"
    assert "ava" in result.failed.fault and "No such file" in result.failed.fault


def test_variables_that_a_task_can_not_get_fail_that_task(host):
    def variables(task):
        if task == "register":
            raise AvaError("mlflow: the server ended with code 1")
        return {**host.variables, "MARK": task}

    result = host.run(variables=variables)
    assert result.failed.name == "register" and "the server ended with code 1" in result.failed.fault
    marks = [entry["environment"]["MARK"] for entry in host.journal]
    assert steps(marks) == [*steps(ORDER)[:6], "record-outcome"]


def test_finished_work_taken_again_is_reported_as_cached(host):
    result = host.run("train=reuse")
    assert [task.name for task in result.tasks if task.cached] == ["train"]
    assert any(line.startswith("train: unchanged, taken from finished work (") for line in host.lines)


@on_both_executors
def test_lines_are_shown_live_and_kept_in_the_step_s_log(fake):
    result = fake.run("train=exit code")
    assert "  train | train at work" in fake.lines
    assert result.failed.log.read_text() == "train at work\nava: train.learning_rate is too large\n"
    assert fake.lines.index("train: started (2 of 8)") < fake.lines.index("  train | train at work")


def test_figures_of_a_task_are_its_metrics_and_its_timings(host):
    train = next(task for task in host.run().tasks if task.name == "train")
    assert train.figures == {"a_figure": 1.5, "another": 2, "wall_seconds": 0.5}


def test_kfp_local_says_nothing_on_our_output(host, capfd):
    host.run("train=exit code")
    assert capfd.readouterr() == ("", "")
    assert "preprocess" in (host.folder / "runs" / "kfp.log").read_text()


def test_steps_run_in_process_groups_of_their_own(host):
    host.run()
    groups = [entry["group"] for entry in host.journal]
    assert os.getpgid(0) not in groups and len(set(groups)) == len(groups)


def test_process_that_a_step_leaves_running_is_ended_and_does_not_hold_the_run(host):
    assert host.run("train=orphan").succeeded  # it would sleep longer than this test may take
    assert gone(int((host.folder / "child.pid").read_text()))


INTERRUPTED = """
import os, sys
from pathlib import Path
from pipelines import command_line
from pipelines.graph import Graph
from pipelines.docker_executor import DockerExecutor
from pipelines.host_executor import HostExecutor
from pipelines.runner import LocalRunner
folder, number, runner = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
variables = {"FAKE_JOURNAL": f"{folder}/journal.jsonl", "FAKE_FAULT": sys.argv[4]}
if runner == "host":
    executor, variables["PATH"] = HostExecutor(os.environ), f"{folder}/bin:{os.environ['PATH']}"
else:
    executor = DockerExecutor(os.environ, writable=[folder], readable=[])
def show(line):
    print(line, flush=True)
    if "hanging" in line:
        os.kill(os.getpid(), number)
runner = LocalRunner(Graph((folder / "ir.yaml").read_text()), folder / "runs", executor,
                     variables=lambda task: variables, show=show)
command_line.run("test", lambda: runner.run({"params_yaml": "", "data_uri": "."}) and 0)
"""


def interrupt(fake, ir: str, number: int, runner: str, fault: str) -> subprocess.CompletedProcess:
    (fake.folder / "ir.yaml").write_text(ir)
    command = [sys.executable, "-c", INTERRUPTED, str(fake.folder), str(int(number)), runner, fault]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])


ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_interrupt_ends_the_step_with_its_children(host, ir, number, code):
    answer = interrupt(host, ir, number, "host", "train=hang")
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    assert host.called == ["preprocess", "train", "record-outcome"]
    assert gone(host.journal[-1]["pid"]) and gone(int((host.folder / "child.pid").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), ENDINGS)
@pytest.mark.parametrize("fault", ["train=hang", "train=hang deaf"])
def test_interrupt_ends_the_container_and_leaves_none_behind(docker, fake_image, ir, containers, number, code, fault):
    answer = interrupt(docker, ir.replace("ava-moe:cpu", fake_image), number, "docker", fault)
    assert answer.returncode == code, answer.stderr
    assert "Traceback" not in answer.stderr
    assert docker.called == ["preprocess", "train", "record-outcome"]
    assert containers(docker) == []


class SlowExecutor:
    """Interrupts us while it starts the first task."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def start(self, command, **given):
        self.done.append("start")
        if self.done == ["start"]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return self

    @property
    def handle(self):
        return "a container"

    def lines(self):
        return iter([])

    def wait(self, seconds=None):
        return Ending(code=137) if "kill" in self.done else None

    def terminate(self):
        self.done.append("terminate")

    def kill(self):
        self.done.append("kill")

    def close(self):
        self.done.append("close")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Interrupted])
def test_task_that_is_starting_when_the_interrupt_comes_is_ended_too(tmp_path, ir, raised):
    if raised is Interrupted:
        handle_signals()
    executor = SlowExecutor()
    runner = LocalRunner(Graph(ir), tmp_path, executor, variables=lambda task: {}, show=lambda line: None)
    with pytest.raises(raised):
        runner.run({"params_yaml": "", "data_uri": "."})
    of_task, of_exit_handler = (
        executor.done[: executor.done.index("close") + 1],
        executor.done[executor.done.index("close") + 1 :],
    )
    assert "kill" in of_task
    assert of_exit_handler[0] == "start" and of_exit_handler[-1] == "close"
    assert [task.fault for task in runner.result.tasks] == ["interrupted"]
    assert not list(tmp_path.glob(".workspace-*")), "kfp.local was not left to clear up"


def test_defect_of_kfp_local_is_a_failure_of_the_run(host, monkeypatch):
    from kfp import local

    def broken(*_, **__):
        raise IndexError("list index out of range")

    monkeypatch.setattr(local, "init", broken)
    result = host.run()
    assert not result.succeeded and result.fault == "IndexError: list index out of range" and result.tasks == []


CODE = """
import json, pathlib, sys, time
text, output, executor_output = sys.argv[1:]
time.sleep(0.3)
path = pathlib.Path(output)
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(text)
listed = {"artifacts": {"made": {"artifacts": [{"uri": output, "metadata": {}}]}}}
pathlib.Path(executor_output).write_text(json.dumps(listed))
"""


@dsl.container_component
def note(text: str, made: dsl.Output[dsl.Artifact]):
    return dsl.ContainerSpec(
        image="none",
        command=[sys.executable, "-c", CODE],
        args=[text, made.path, dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER],
    )


@dsl.container_component
def copy(source: dsl.Input[dsl.Artifact], made: dsl.Output[dsl.Artifact]):
    return dsl.ContainerSpec(
        image="none",
        command=[sys.executable, "-c", CODE],
        args=[source.path, made.path, dsl.PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER],
    )


@dsl.pipeline(name="repeated")
def repeated():
    first = note(text="first")
    second = note(text="second").after(first)
    with dsl.ParallelFor(["a", "b", "c"]) as item:
        note(text=item).after(second)
    copy(source=second.outputs["made"])


@pytest.fixture
def run_repeated(tmp_path):
    path = tmp_path / "repeated.yaml"
    compiler.Compiler().compile(repeated, str(path))
    runner = LocalRunner(
        Graph(path.read_text()),
        tmp_path / "runs",
        HostExecutor(os.environ),
        variables=lambda task: {},
        show=lambda _: None,
    )
    return lambda: runner.run({})


def test_tasks_of_one_component_have_folders_of_their_own(run_repeated):
    """The iterations of a loop are tasks of one component, and kfp.local gives all of them the same folder."""
    result = run_repeated()
    assert result.succeeded, result.fault
    written = {task.name: (task.folder / "made").read_text() for task in result.tasks}
    assert set(written) == {"note", "note-2", "note-3", "note-3.2", "note-3.3", "copy"}
    assert sorted(written[name] for name in written if name.startswith("note-3")) == ["a", "b", "c"]
    assert written["note"] == "first" and written["note-2"] == "second"
    assert written["copy"] == str(result.folder("note-2") / "made")


@pytest.mark.slow
def test_parts_of_the_corpus_are_tasks_with_folders_of_their_own(host):
    cluster = KubernetesConfig.model_validate({"preprocess_parts": 3, "work": {"claim": "work", "mount_path": "/mnt"}})
    host.graph = Graph(compile_pipeline(["int8"], cluster=cluster))
    host.variables["AVA_WORK"] = "/the/host's"
    result = host.run()
    assert result.succeeded, result.fault
    parts = {"preprocess-part", "preprocess-part.2", "preprocess-part.3"}
    assert {task.name for task in result.tasks if task.component == "preprocess-part"} == parts
    assert {entry["flags"]["part"] for entry in host.journal if "part" in entry["flags"]} == {"1/3", "2/3", "3/3"}
    assert host.called[3] == "preprocess"
    assert {entry["environment"]["AVA_WORK"] for entry in host.journal} == {"/the/host's"}, "not the cluster's volume"


def test_parallel_tasks_leave_print_and_logging_as_they_were(run_repeated):
    import builtins
    import logging

    before = builtins.print, logging.getLogger().handlers[:], sys.stdout
    assert run_repeated().succeeded
    assert (builtins.print, logging.getLogger().handlers, sys.stdout) == before


def test_a_step_is_tried_once_whatever_the_cluster_would_do(host, ir):
    """With a retry of the cluster's policy, a failing step would take minutes to be reported."""
    assert "retryPolicy" in ir
    host.run("preprocess=exit code")
    assert host.called == ["preprocess", "record-outcome"]


def test_what_the_adapter_relies_on_in_kfp_local(host):
    """Handlers and folders are looked up in their modules when a task starts; we put back what was there."""
    from kfp.local import config, executor_input_utils, subprocess_task_handler, task_dispatcher

    handler, task_root = subprocess_task_handler.SubprocessTaskHandler, executor_input_utils.construct_local_task_root
    assert task_dispatcher.subprocess_task_handler is subprocess_task_handler
    assert task_dispatcher.executor_input_utils is executor_input_utils
    host.run()
    assert subprocess_task_handler.SubprocessTaskHandler is handler
    assert executor_input_utils.construct_local_task_root is task_root
    assert config.LocalExecutionConfig.instance is None


def gone(pid: int, seconds: float = 100.0) -> bool:
    """Whether a process has ended, within so many seconds."""
    for _ in range(round(seconds * 10)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
