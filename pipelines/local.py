"""Run the pipeline on this machine, each step as a process or as a container, and close with what came out of it.

Usage: python -m pipelines.local [--runner host|docker] [--params params.yaml] [--set key=value]... [--from STEP]

Starts a local MLflow server if none answers. Steps remember their work under AVA_WORK (`.ava/work`), so that another
run goes on where this one ended, and computes only what changed; both runners share it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

from ava_core.config import AvaConfig, hardware
from ava_core.config.memory import require_training_memory
from ava_core.errors import ConfigError
from components.image import choose as choose_image
from pipelines import command_line, mlflow_server, run_server, summary
from pipelines.ava_pipeline import NAME
from pipelines.compile import compile_configured, parent_folder, require_reachable_models
from pipelines.docker_executor import DockerExecutor
from pipelines.executor import Executor
from pipelines.graph import Graph
from pipelines.host_executor import HostExecutor
from pipelines.image_drift import find_drift
from pipelines.run_record import RunRecord, find_left, is_going_on
from pipelines.runner import LocalRunner

DATA = Path("data/raw")
RUNS = Path(".ava/runs")
WORK = Path(".ava/work")
RUNNERS = ("host", "docker")
KEPT_RUNS = 10
MEND_SECONDS = 60.0
"""How long a run waits at its end until those before it are recorded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; 0 if every step succeeded."""
    flags = _parser().parse_args(arguments)
    config = command_line.resolve_flags(flags).config
    require_reachable_models(config)
    require_training_memory(config, hardware.detect())
    console = Console()
    graph = Graph(compile_configured(config, choose_image(flags.image)))
    forced = graph.from_on(graph.select(flags.start, "--from")) if flags.start else set()
    timeouts = command_line.parse_timeouts(flags.timeouts, graph)
    executor = make_executor(flags, config, os.environ, graph.images, console.show)
    prune_runs(flags.runs)
    server = run_server.start(os.environ)
    run_server.require_ready(config, os.environ)
    runner = LocalRunner(
        graph,
        flags.runs,
        executor,
        variables=lambda task: task_variables(task, os.environ, server),
        show=console.show,
        timeouts=timeouts,
        forced=forced,
    )
    mending = mend_left(flags.runs, runner, server)
    result = runner.run(
        {
            "params_yaml": command_line.params_yaml(config),
            "data_uri": str(flags.data.absolute()),
            "git_commit": command_line.head_commit(),
            **({"init_uri": str(Path(parent).absolute())} if (parent := parent_folder(config)) else {}),
        }
    )
    mending.join(MEND_SECONDS)
    closing = summary.outcome(result) if result.succeeded else summary.failure(result, _again(arguments))
    for line in ("", *summary.task_table(result), "", *closing):
        console.show(line)
    return 0 if result.succeeded else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.local", description="Run the pipeline on this machine.", allow_abbrev=False
    )
    command_line.add_config_flags(parser)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the corpus (default: %(default)s)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=RUNS,
        help=f"where the last {KEPT_RUNS} runs keep their outputs and logs (default: %(default)s)",
    )
    parser.add_argument(
        "--runner", choices=RUNNERS, default=RUNNERS[0], help="steps as processes or as containers (default: host)"
    )
    parser.add_argument(
        "--image", help="image of every step, with --runner docker (default: the one that `make images` built last)"
    )
    parser.add_argument(
        "--from",
        metavar="STEP",
        dest="start",
        help="compute this step and all that depend on it anew, whatever finished work there is",
    )
    parser.add_argument(
        "--timeout",
        action="append",
        default=[],
        metavar="STEP=SECONDS",
        dest="timeouts",
        help="time limit of a step, past which it is ended and has failed; repeatable",
    )
    return parser


def make_executor(
    flags: argparse.Namespace,
    config: AvaConfig,
    environment: Mapping[str, str],
    images: set[str],
    show: Callable[[str], None],
) -> Executor:
    """Where the tasks run; shows a line for each image that may run other code than this checkout.

    Raises:
        AvaError: no Docker engine answers, or it lacks an image.
        ConfigError: the tracking address is of no use in a container.
    """
    if flags.runner == "host":
        return HostExecutor(environment)
    for name in mlflow_server.ADDRESS_VARIABLES:
        scheme = urlsplit(environment.get(name, "").strip()).scheme
        if scheme not in ("", "http", "https"):
            raise ConfigError(
                f"{name} = {scheme}:...: no container sees that store: give http://HOST:PORT, or unset it"
            )
    executor = DockerExecutor(
        environment,
        writable=[flags.runs.absolute(), work_folder(environment)],
        readable=[flags.data.absolute(), *absolute_sources(config), *(Path(p).absolute() for p in _parents(config))],
    )
    for image in sorted(images):
        if drift := find_drift(image, executor.labels(image)):
            show(drift)
    return executor


def _parents(config: AvaConfig) -> list[str]:
    parent = parent_folder(config)
    return [parent] if parent else []


def absolute_sources(config: AvaConfig) -> list[Path]:
    """Files and folders that the configuration's sources name from the root, so outside of --data."""
    named = [Path(source.location) for source in config.data.sources]
    return [Path(*takewhile(lambda part: not has_magic(part), path.parts)) for path in named if path.is_absolute()]


def work_folder(environment: Mapping[str, str]) -> Path:
    """The steps' durable memory, one for all of them and for both runners."""
    return Path(environment.get("AVA_WORK") or WORK).absolute()


def mend_left(runs: Path, runner: LocalRunner, server: Future[str]) -> threading.Thread:
    """End at once what runs have left running whose runner was killed; the thread records how they ended.

    It waits for the server, without which their runs in MLflow can't be ended.
    """
    left = list(find_left(runs))
    for run in left:
        run.end_tasks()

    def record() -> None:
        with contextlib.suppress(Exception):
            server.result()
        for run in left:
            runner.record_outcome(run.folder, "CANCELLED", "its runner was killed", ", ".join(run.tasks))
            RunRecord(run.folder).remove()

    mending = threading.Thread(target=record, name="mend", daemon=True)
    mending.start()
    return mending


def task_variables(task: str, environment: Mapping[str, str], server: Future[str]) -> dict[str, str]:
    """The variables of a task that aren't the machine's: one work folder for all, and the tracking server.

    The server goes by MLflow's own variable, for the component fills AVA_TRACKING_URI from the pipeline's parameter,
    which is empty here: the server may not be up yet when the pipeline starts.

    Raises:
        AvaError: the task needs the server, and it didn't start.
    """
    variables = {"AVA_WORK": str(work_folder(environment)), "PYTHONUNBUFFERED": "1"}
    if address := run_server.address_for(task, server):
        variables["MLFLOW_TRACKING_URI"] = address
    return variables


def prune_runs(runs: Path, kept: int = KEPT_RUNS) -> list[Path]:
    """Remove the oldest runs, to make room for one more among the `kept` last ones; return the removed.

    The work folder, which makes a rerun quick, stays.
    """
    present = sorted(runs.glob(f"{NAME}-[0-9][0-9][0-9][0-9]-*"))
    old = [run for run in present[: max(0, len(present) + 1 - kept)] if not is_going_on(run)]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    return old


def _again(arguments: Sequence[str] | None) -> str:
    """The command that goes on: the one that was given, but for --from, which would throw away what is done by now."""
    if "MAKELEVEL" in os.environ:
        return "make pipeline-local, with the same variables but FROM"
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--from" in given:
        start = given.index("--from")
        del given[start : start + 2]
    return shlex.join([sys.executable, "-m", "pipelines.local", *(word for word in given if word[:7] != "--from=")])


class Console:
    """Standard output as it is now: kfp.local's run redirects `sys.stdout` and changes `print`."""

    def __init__(self) -> None:
        self.stream = sys.stdout

    def show(self, line: str) -> None:
        """Write one line at once. A run goes on when nobody watches any more; its logs are in files."""
        with contextlib.suppress(BrokenPipeError):
            self.stream.write(f"{line}\n")
            self.stream.flush()


if __name__ == "__main__":
    command_line.run("pipelines.local", main)
