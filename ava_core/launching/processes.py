"""Worker processes on this machine: started together, supervised, and terminated together.

Not by torchrun, which would take one more interpreter with its import of torch. Not by its
`torch.distributed.elastic.multiprocessing` either: that one waits 30 s before it kills a process that doesn't answer
SIGTERM (one inside a collective doesn't), takes the earliest failure for the cause, which may be a lost connection,
can't pass an open socket on or take variables away, and replaces the handlers of this process's signals.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ava_core.distributed.environment import FAMILIES, LISTEN_DESCRIPTOR, LOCAL_SIZES
from ava_core.launching import failures

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""


def run_here(size: int, command: Sequence[str], folder: Path, log_of_first: Path | None) -> None:
    """Run a command in `size` processes, each with the environment of its rank, until all have ended.

    Args:
        size: number of processes.
        command: of each of them.
        folder: where they leave failures and logs.
        log_of_first: the log of rank 0, for messages.

    Raises:
        AvaError: a process failed or was killed, and all others have been ended; or the class that it failed with.
    """
    workers: list[subprocess.Popen] = []
    # Listening before anyone connects: no other program can take the port between its choice and its use.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        try:
            for rank in range(size):
                environment = rank_environment(rank, size, port)
                if rank == 0:
                    environment[LISTEN_DESCRIPTOR] = str(listener.fileno())
                workers.append(start(command, environment, (listener.fileno(),) if rank == 0 else ()))
            listener.close()
            _wait(workers, folder, log_of_first)
        finally:
            end(workers)


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, and LOCAL_SIZE, by which DeepSpeed knows that all are on one machine."""
    environment = environment_without_launcher()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "LOCAL_SIZE": size}
    environment |= {name: str(value) for name, value in ranks.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "lo" in (name for _, name in socket.if_nameindex()):  # the machine's own name need not resolve
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def environment_without_launcher() -> dict[str, str]:
    """The variables of this process but those of a launcher that has started it."""
    theirs = {name for names in FAMILIES.values() for name in names} | set(LOCAL_SIZES) | {"MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in theirs}


def start(command: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int] = ()) -> subprocess.Popen:
    """A process in a group of its own: Ctrl-C reaches this process alone, which then ends the others in order.

    Args:
        command: what it runs.
        environment: all of its variables.
        descriptors: open files that it inherits.
    """
    return subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0
    )


def end(processes: Sequence[subprocess.Popen], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Terminate the process groups that still run: SIGTERM, then SIGKILL after `patience_seconds`."""
    for number, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, PATIENCE_SECONDS)):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _wait(workers: Sequence[subprocess.Popen], folder: Path, log_of_first: Path | None) -> None:
    """Until all have ended well; at the first that hasn't, raise what happened."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            codes = [worker.poll() for worker in workers]  # the cause may have ended just after its consequence
            raise failures.explain(dict(enumerate(codes)), folder, log_of_first)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)
