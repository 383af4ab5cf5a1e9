"""Run the pipeline on this machine, each step as a process, and close with what came out of it.

Usage: python -m pipelines.local --params params.yaml [--set key=value]... [--data DIR] [--runs DIR]

Starts a local MLflow server if none answers. Steps remember their work under AVA_WORK (`.ava/work`), so that another
run goes on where this one ended, and computes only what changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from pipelines import command_line, mlflow_server, summary
from pipelines.ava_pipeline import NAME
from pipelines.compile import compile_pipeline
from pipelines.host_runner import HostRunner

DATA = Path("data/raw")
RUNS = Path(".ava/runs")
WORK = Path(".ava/work")
REGISTER = "register"
TRAIN = "train"
KEPT_RUNS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; 0 if every step succeeded."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description="Run the pipeline on this machine.")
    command_line.add_config_flags(parser)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the corpus (default: %(default)s)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=RUNS,
        help=f"where the last {KEPT_RUNS} runs keep their outputs (default: %(default)s)",
    )
    flags = parser.parse_args(arguments)
    config = command_line.resolve_flags(flags).config
    console = Console()
    prune_runs(flags.runs)
    server = start_server(os.environ)
    runner = HostRunner(
        compile_pipeline(config.quantize.schemes),
        flags.runs,
        environment=lambda task: task_environment(task, os.environ, server),
        show=console.show,
    )
    result = runner.run(
        {
            "params_yaml": command_line.params_yaml(config),
            "data_uri": str(flags.data.absolute()),
            "git_commit": command_line.head_commit(),
        }
    )
    closing = summary.outcome(result) if result.succeeded else summary.failure(result, _again(arguments))
    for line in ("", *summary.task_table(result), "", *closing):
        console.show(line)
    return 0 if result.succeeded else 1


def start_server(environment: Mapping[str, str]) -> Future[str]:
    """The address of the MLflow server, later: its first start takes longer than some steps, and only register waits.

    The thread is a daemon: a run that fails early doesn't wait for a server that it no longer needs. The server itself
    is a process of its own, and the next run finds it.

    Raises:
        AvaError: the environment names a server that doesn't answer: better now than after the training.
        ConfigError: the environment names no address.
    """
    server: Future[str] = Future()

    def ensure() -> None:
        try:
            server.set_result(mlflow_server.ensure())
        except BaseException as error:
            server.set_exception(error)

    threading.Thread(target=ensure, name="mlflow", daemon=True).start()
    if any(environment.get(name, "").strip() for name in mlflow_server.ADDRESS_VARIABLES):
        server.result()
    return server


def prune_runs(runs: Path, kept: int = KEPT_RUNS) -> list[Path]:
    """Make room for one more run among the `kept` last ones; the work folder, which makes a rerun quick, stays."""
    present = sorted(runs.glob(f"{NAME}-[0-9][0-9][0-9][0-9]-*"))
    old = present[: max(0, len(present) + 1 - kept)]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    return old


def _again(arguments: Sequence[str] | None) -> str:
    """The command that was given."""
    if "MAKELEVEL" in os.environ:
        return "make pipeline-local, with the same variables"
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join([sys.executable, "-m", "pipelines.local", *given])


def task_environment(task: str, base: Mapping[str, str], server: Future[str]) -> dict[str, str]:
    """The environment of a task's process: this environment's `ava` first on PATH, one work folder for all.

    register waits for the server's address; train is shown while it runs if the server is up by then. Both go by
    MLflow's own variable, for the component fills AVA_TRACKING_URI from the pipeline's parameter, which is empty here.

    Raises:
        AvaError: the task needs the server, and it didn't start.
    """
    # Not resolved: in a virtual environment the interpreter is a link, and `ava` lies beside the link.
    folder = str(Path(sys.executable).parent)
    environment = {
        **base,
        "PATH": os.pathsep.join([folder, base.get("PATH", os.defpath)]),
        "AVA_WORK": str(Path(base.get("AVA_WORK") or WORK).absolute()),
        "PYTHONUNBUFFERED": "1",
    }
    if task == REGISTER or (task == TRAIN and server.done() and server.exception() is None):
        environment["MLFLOW_TRACKING_URI"] = server.result()
    return environment


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
