"""The tracking server of a run on this machine: started beside the work, looked at before it, handed to each task."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future

from ava_core.config import AvaConfig
from ava_core.errors import AvaError
from ava_core.steps.table import STEPS
from pipelines import mlflow_server

NEED_SERVER = tuple(name for name, spec in STEPS.items() if not spec.cacheable)
"""Steps that can't do without the tracking server, and wait for it; the others are only recorded there."""


def start(environment: Mapping[str, str]) -> Future[str]:
    """A future of the MLflow server's address: the server starts while the pipeline is compiled and loaded.

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


def require_ready(config: AvaConfig, environment: Mapping[str, str]) -> None:
    """Preflight check, by `ava_core.tracking.ready`: faults of the server that a pipeline would only meet at its end.

    A server of ours that isn't up yet isn't waited for: the first step that finds it up looks as well.

    Raises:
        AvaError: there is one, in that module's words.
    """
    names = mlflow_server.ADDRESS_VARIABLES
    running = mlflow_server.read()
    variables = {}
    if not any(environment.get(name, "").strip() for name in names):
        if running is None or not running.answers:
            return
        variables = {"AVA_TRACKING_URI": running.address}
    command = [sys.executable, "-m", "ava_core.tracking.ready", "--experiment", config.registry.experiment]
    command += ["--model", config.registry.model_name]
    looked = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)
    if looked.returncode:
        raise AvaError(looked.stderr.strip().rpartition("\n")[2] or f"{command[2]} ended with {looked.returncode}")


def address_for(task: str, server: Future[str]) -> str | None:
    """The server's address. A step that is only recorded there doesn't wait for its start: it may be up at its end.

    Ours may have been killed since it started; before a step that needs it, it is started again.

    Raises:
        AvaError: the task needs the server, and it didn't start.
    """
    try:
        address = server.result(None if task in NEED_SERVER else 0)
        return mlflow_server.ensure() if task in NEED_SERVER else address
    except TimeoutError:
        starting = mlflow_server.read()
        return starting.address if starting is not None and starting.running else None
    except Exception as error:
        if task in NEED_SERVER:
            raise AvaError(str(error)) from error
        return None
