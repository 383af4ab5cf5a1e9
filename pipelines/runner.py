"""Run the compiled pipeline on this machine: kfp.local orders the tasks, an executor runs each of them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError, typed_line
from ava_core.interruption import Interrupted
from pipelines import exit_handler
from pipelines.executor import GRACE_SECONDS, Executor, RunningTask, supervise
from pipelines.graph import Component, Graph
from pipelines.kfp_local import installed, quiet, without_retries
from pipelines.results import CONSOLE_LOG, PipelineResult, TaskResult, last_lines
from pipelines.run_record import RunRecord
from pipelines.task_outputs import EXECUTOR_OUTPUT, find_faults, read_figures, was_cached

FORCE = "--force"
CLEAR_SECONDS = 5.0
"""Time for kfp.local to return after an interrupt has ended its last task."""


class LocalRunner:
    """Runs one compiled pipeline.

    Args:
        graph: the compiled pipeline.
        root: where each run gets a folder, with one for each task.
        executor: where the tasks run.
        variables: environment variables of a task, by its component's name; called when the task starts. They win over
            those in the IR, which are a cluster's. An AvaError from it fails the task.
        show: is given each line to show; it must not print to `sys.stdout`, which is kfp.local's during a run.
        timeouts: seconds that tasks may take, by component; over those in the IR.
        forced: components whose steps compute anew whatever finished work there is.
    """

    def __init__(
        self,
        graph: Graph,
        root: Path,
        executor: Executor,
        *,
        variables: Callable[[str], Mapping[str, str]],
        show: Callable[[str], None],
        timeouts: Mapping[str, float] | None = None,
        forced: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.root = root.absolute()
        self.executor = executor
        self.variables = variables
        self.show = show
        self.timeouts = dict(timeouts or {})
        self.forced = set(forced)
        self.result = PipelineResult()
        self._stopping = False
        self._running: dict[Path, RunningTask | None] = {}  # by folder; None while it starts
        self._components: dict[Path, str] = {}
        self._record: RunRecord | None = None

    def run(self, arguments: Mapping[str, Any]) -> PipelineResult:
        """Run the pipeline with these arguments; a failed task is in the result, not raised.

        Whatever interrupts the wait (Ctrl-C, SIGTERM, SIGHUP) ends the tasks that run, starts no other but the exit
        handler, and is raised.
        """
        self.result = PipelineResult(order=self.graph.order)
        self.root.mkdir(parents=True, exist_ok=True)
        # In a thread, so that an interrupt meets us and not kfp.local, which would wait for its parallel tasks.
        # And waited for by an event: a join that an interrupt ends takes the thread for ended (Python 3.11).
        ended = threading.Event()
        try:
            threading.Thread(target=self._run, args=(arguments, ended), name="kfp.local", daemon=True).start()
            ended.wait()
        except BaseException as error:
            self._stop(ended)
            self._close("CANCELLED", error.word if isinstance(error, Interrupted) else "interrupted")
            raise
        self._close("FAILED", self.result.fault)
        return self.result

    def record_outcome(self, run: Path, state: str, message: str, task: str = "") -> None:
        """Run the exit handler of a run in which it hasn't run, this one's or an earlier one's.

        Args:
            run: the run's folder.
            state: CANCELLED or FAILED.
            message: what happened, in one line.
            task: the task in which it happened, if one is known.
        """
        handler = self.graph.exit_handler
        if handler is None or exit_handler.has_run(run, handler):
            return
        try:
            variables = self.variables(handler.name)
        except AvaError as error:
            fault = str(error)
        else:
            fault = exit_handler.record(run, handler, self.executor, variables, state=state, task=task, message=message)
        self.show(
            f"{run.name}: {message}: " + (f"its outcome isn't recorded: {fault}" if fault else f"recorded as {state}")
        )

    def _close(self, state: str, message: str) -> None:
        """Record the outcome, unless kfp.local has run the exit handler; nothing is left to mend afterwards."""
        if self._record is None:
            return
        task = self.result.failed
        self.record_outcome(self._record.run, state, message, task.name if task else "")
        self._record.remove()

    def _run(self, arguments: Mapping[str, Any], ended: threading.Event) -> None:
        from kfp import components, local

        try:
            pipeline = components.load_component_from_text(without_retries(self.graph.spec))
            workspace = tempfile.TemporaryDirectory(prefix=".workspace-", dir=self.root, ignore_cleanup_errors=True)
            with workspace, installed(self.run_task, self._components.__setitem__), quiet(self.root / "kfp.log"):
                local.init(
                    local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(self.root),
                    workspace_root=workspace.name,
                    raise_on_error=True,
                )
                pipeline(**arguments)
        except Exception as error:
            # Anything that kfp.local raises is a failure of the run, its own defects included.
            self.result.fault = typed_line(error)
        finally:
            ended.set()

    def _stop(self, ended: threading.Event) -> None:
        """End what runs: by SIGTERM, then by SIGKILL; a second interrupt sends that at once."""
        self._stopping = True
        for method in ("terminate", "kill"):
            deadline = time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                for task in list(self._running.values()):
                    if task is not None:
                        getattr(task, method)()
                while self._running and time.monotonic() < deadline:
                    ended.wait(0.05)
        ended.wait(CLEAR_SECONDS)

    def run_task(self, image: str, command: list[str], variables: Mapping[str, str]) -> bool:
        """Run one task and note how it ended; True if it succeeded."""
        output = next((Path(word) for word in command if Path(word).name == EXECUTOR_OUTPUT), None)
        if output is None:
            raise ValueError(f"{command[:2]}: the component passes no path for its {EXECUTOR_OUTPUT}")
        if self._stopping:
            return False
        folder = output.parent
        component = self.graph.component(self._components[folder])
        if component.step and component.name in self.forced:
            command = [*command, FORCE]
        position = list(dict.fromkeys(self.result.order)).index(component.name) + 1
        self.show(f"{folder.name}: started ({position} of {len(set(self.result.order))})")
        started = time.monotonic()
        fault = self._failure(component, folder, image, command, variables)
        seconds = time.monotonic() - started
        cached = not fault and was_cached(folder)
        self.result.tasks.append(
            TaskResult(
                name=folder.name,
                component=component.name,
                status="failed" if fault else "succeeded",
                cached=cached,
                seconds=seconds,
                folder=folder,
                figures={} if fault else read_figures(folder, component.definition),
                fault=fault,
            )
        )
        ending = f"failed: {fault}" if fault else "unchanged, taken from finished work" if cached else "succeeded"
        self.show(f"{folder.name}: {ending} ({seconds:.1f} s)")
        return not fault

    def _failure(
        self, component: Component, folder: Path, image: str, command: Sequence[str], variables: Mapping[str, str]
    ) -> str:
        """Run the command; why the task failed, or an empty string."""
        log = folder / CONSOLE_LOG
        try:
            given = {**variables, **self.variables(component.name), "AVA_PIPELINE_RUN": folder.parent.name}
            with self._started(folder, command, image=image, variables=given) as task:
                ending = supervise(
                    task,
                    log=log,
                    show=lambda line: self.show(f"  {folder.name} | {line}"),
                    timeout=self.timeouts.get(component.name, component.timeout),
                )
        except AvaError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or command[0]}: {error.strerror or error}"
        if self._stopping:
            return "interrupted"
        if not ending.succeeded:
            return ": ".join([str(ending), *last_lines(log, 1)])
        return "; ".join(find_faults(folder, component.definition))

    @contextlib.contextmanager
    def _started(self, folder: Path, command: Sequence[str], **given: Any) -> Iterator[RunningTask]:
        """Start a task, and let an interrupt find it from before it starts until it has ended."""
        self._running[folder] = None
        try:
            if self._stopping:
                raise AvaError("interrupted")
            task = self.executor.start(command, name=f"{folder.parent.name}-{folder.name}", **given)
            self._running[folder] = task
            self._note(folder, task.handle)
            if self._stopping:  # the interrupt came meanwhile
                task.kill()
            yield task
        finally:
            del self._running[folder]
            self._note(folder, None)

    def _note(self, folder: Path, handle: Any) -> None:
        """Keep the run's record; a full disk fails the task for a better reason than this one."""
        if self._record is None:
            self._record = RunRecord(folder.parent)
        with contextlib.suppress(OSError):
            self._record.note(folder.name, handle)
