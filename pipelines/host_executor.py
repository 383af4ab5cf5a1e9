"""Tasks as processes of this machine, each the leader of a process group, which is killed whole at the task's end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError
from pipelines.executor import Ending
from pipelines.processes import Process


class HostExecutor:
    """Starts processes; the image is ignored, and the `ava` of this environment is first on their PATH.

    Args:
        environment: the variables of every task.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Not resolved: in a virtual environment the interpreter is a link, and `ava` lies beside the link.
        folder = str(Path(sys.executable).parent)
        self.environment = {**environment, "PATH": os.pathsep.join([folder, environment.get("PATH", os.defpath)])}

    def start(self, command: Sequence[str], *, image: str, name: str, variables: Mapping[str, str]) -> HostTask:
        """Start a process without a shell, in a session and group of its own."""
        try:
            process = subprocess.Popen(
                list(command),
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise AvaError(f"{error.filename}: no such program on PATH: `make setup` installs it") from error
        except OSError as error:
            raise AvaError(f"{error.filename or command[0]}: {error.strerror or error}") from error
        return HostTask(process)


class HostTask:
    """A process and what it started (its process group), as a `RunningTask`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def handle(self) -> dict[str, Any]:
        """See `RunningTask`."""
        return asdict(Process.of(self._process.pid))

    def lines(self) -> Iterator[bytes]:
        """See `RunningTask`."""
        yield from self._process.stdout or ()

    def wait(self, seconds: float | None = None) -> Ending | None:
        """See `RunningTask`. A process that the task left running is ended: it would hold its files and memory."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self.kill()
        return Ending(code=code)

    def terminate(self) -> None:
        """See `RunningTask`."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `RunningTask`."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """See `RunningTask`."""
        self.kill()
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
