"""Run the compiled pipeline on this machine without Docker: kfp.local orders the tasks, a host process is each of them.

`kfp.local.SubprocessRunner` refuses container components. Its task handler is looked up by the runner's type when a
task starts, so ours takes its place for the time of a run, and runs the component's command as it stands in the IR. The
image is left out: the `ava` on PATH is the one of this environment. A test pins what this relies on.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ava_core.errors import AvaError
from pipelines.process import describe_exit, run_command
from pipelines.task_outputs import EXECUTOR_OUTPUT, find_faults, read_metadata

CONSOLE_LOG = "console.log"
COMPONENT_PREFIX = "comp-"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How a task ended.

    Attributes:
        name: the component's name.
        status: whether its step computed, took finished work again, or failed.
        seconds: wall-clock time.
        folder: where its outputs lie.
        fault: why it failed, in one line; empty otherwise.
    """

    name: str
    status: Literal["computed", "reused", "failed"]
    seconds: float
    folder: Path
    fault: str = ""

    @property
    def log(self) -> Path:
        """Everything that the task printed."""
        return self.folder / CONSOLE_LOG


@dataclass(kw_only=True)
class PipelineResult:
    """How a run of the pipeline ended.

    Attributes:
        order: names of all tasks, as they run when nothing fails.
        tasks: the tasks that ran, in order.
        fault: what kfp.local said if it failed; empty otherwise.
    """

    order: list[str] = field(default_factory=list)
    tasks: list[TaskResult] = field(default_factory=list)
    fault: str = ""

    @property
    def skipped(self) -> list[str]:
        """Names of the tasks that didn't run."""
        ran = {task.name for task in self.tasks}
        return [name for name in self.order if name not in ran]

    @property
    def succeeded(self) -> bool:
        """Every task ran and succeeded, and kfp.local thinks so too."""
        return not self.fault and not self.skipped and all(task.status != "failed" for task in self.tasks)

    @property
    def failed(self) -> TaskResult | None:
        """The first task that failed."""
        return next((task for task in self.tasks if task.status == "failed"), None)

    def folder(self, name: str) -> Path | None:
        """Where the outputs of a task lie; None if it didn't run or failed."""
        return next((task.folder for task in self.tasks if task.name == name and task.status != "failed"), None)


class HostRunner:
    """Runs one compiled pipeline.

    Args:
        ir: the compiled pipeline, as YAML.
        root: where each run gets a folder, with one for each task.
        environment: all environment variables of a task's process, by the task's name; called when the task starts.
            An AvaError from it fails the task.
        show: is given each line to show; it must not print to `sys.stdout`, which is kfp.local's during a run.
    """

    def __init__(
        self,
        ir: str,
        root: Path,
        environment: Callable[[str], Mapping[str, str]],
        show: Callable[[str], None],
    ) -> None:
        self.ir = ir
        self.root = root.absolute()
        self.environment = environment
        self.show = show
        self.spec: dict[str, Any] = yaml.safe_load(ir)
        self.result = PipelineResult()

    def run(self, arguments: Mapping[str, Any]) -> PipelineResult:
        """Run the pipeline with these arguments; a failed task is in the result, not raised."""
        from kfp import components, local

        self.result = PipelineResult(order=container_tasks(self.spec))
        self.root.mkdir(parents=True, exist_ok=True)
        pipeline = components.load_component_from_text(self.ir)
        with self._installed(), _quiet(self.root / "kfp.log"):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(self.root), raise_on_error=True)
            try:
                pipeline(**arguments)
            except Exception as error:
                # Anything that kfp.local raises is a failure of the run, its own defects included.
                self.result.fault = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return self.result

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """Take the place of the handler for SubprocessRunner; put everything back afterwards."""
        from kfp.local import config, subprocess_task_handler

        original = subprocess_task_handler.SubprocessTaskHandler
        subprocess_task_handler.SubprocessTaskHandler = lambda **given: _HostTask(self, **given)
        try:
            yield
        finally:
            subprocess_task_handler.SubprocessTaskHandler = original
            config.LocalExecutionConfig.instance = None

    def run_task(self, command: list[str], variables: Mapping[str, str]) -> bool:
        """Run one task and note how it ended; True if it succeeded."""
        place = next((Path(word) for word in command if Path(word).name == EXECUTOR_OUTPUT), None)
        if place is None:
            raise ValueError(f"{command[:2]}: the component passes no place for its {EXECUTOR_OUTPUT}")
        folder, name = place.parent, place.parent.name
        self.show(f"{name}: started")
        started = time.monotonic()
        fault = self._failure(name, folder, command, variables)
        seconds = time.monotonic() - started
        reused = any(metadata.get("reused") is True for metadata in read_metadata(folder).values())
        status: Literal["computed", "reused", "failed"] = "failed" if fault else "reused" if reused else "computed"
        result = TaskResult(name=name, status=status, seconds=seconds, folder=folder, fault=fault)
        self.result.tasks.append(result)
        self.show(f"{name}: {status} after {seconds:.1f} s" + (f": {fault}" if fault else ""))
        return not fault

    def _failure(self, name: str, folder: Path, command: list[str], variables: Mapping[str, str]) -> str:
        """Run the command; why the task failed, or an empty string."""
        log = folder / CONSOLE_LOG
        try:
            environment = {**self.environment(name), **variables}
            code = run_command(
                command, environment=environment, log=log, show=lambda line: self.show(f"  {name} | {line}")
            )
        except FileNotFoundError as error:
            return f"{error.filename}: no such program on PATH: `make setup` installs it"
        except AvaError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or command[0]}: {error.strerror or error}"
        if code != 0:
            last = last_lines(log, 1)
            return ": ".join([describe_exit(code), *last])
        faults = find_faults(folder, self.spec["components"][COMPONENT_PREFIX + name])
        return "; ".join(faults)


class _HostTask:
    """kfp.local's ITaskHandler for one task."""

    def __init__(
        self, host: HostRunner, *, full_command: list[str], env_vars: dict[str, str] | None = None, **_: Any
    ) -> None:
        self.host = host
        self.command = full_command
        self.variables = env_vars or {}

    def run(self) -> Any:
        from kfp.local.status import Status

        return Status.SUCCESS if self.host.run_task(self.command, self.variables) else Status.FAILURE


def container_tasks(spec: Mapping[str, Any]) -> list[str]:
    """Names of the components that run as containers, in the order in which kfp.local runs them."""
    from kfp.local import graph_utils

    def walk(dag: Mapping[str, Any]) -> Iterator[str]:
        tasks = dag["tasks"]
        stack = graph_utils.topological_sort({name: task.get("dependentTasks", []) for name, task in tasks.items()})
        for name in reversed(stack):
            component = tasks[name]["componentRef"]["name"]
            definition = spec["components"][component]
            if "dag" in definition:
                yield from walk(definition["dag"])
            elif "container" in spec["deploymentSpec"]["executors"][definition["executorLabel"]]:
                yield component.removeprefix(COMPONENT_PREFIX)

    return list(walk(spec["root"]["dag"]))


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that aren't blank."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-count:]


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send kfp.local's own chatter, coloured and three lines a task, to a file."""
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
