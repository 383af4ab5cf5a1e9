"""Training in several processes of this machine, or of several machines.

On one machine the processes are started right here and not by torchrun, which would bring one more interpreter with
its import of torch, and tell of a process that was killed only in a text. Several machines are DeepSpeed's launcher's
work (pdsh and ssh); all of them must see the work folder under the same path.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ava_core.config.hosts import read_hostfile, world_size
from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import FAMILIES, LISTEN_DESCRIPTOR, LOCAL_SIZES, require_devices
from ava_core.errors import AvaError
from ava_core.launching import failures
from ava_core.launching.lifetime import die_with_parent
from ava_core.launching.request import encode
from ava_core.runtime.progress import Progress

log = logging.getLogger(__name__)
WORKER = "ava_core.launching.worker"
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""
LOCAL_NAMES = ("localhost", "127.0.0.1")


def train_in_processes(
    *, train_config: TrainConfig, state: Path, threads: int, progress: Progress, module: str = WORKER, **others: Any
) -> dict[str, dict[str, float]]:
    """Call `train()` with the same arguments in `train.processes` processes on each machine.

    Args:
        train_config: says how many processes and machines there are.
        state: the processes find their request, and leave logs and results, in its folder `processes`.
        threads: CPU threads of all processes of a machine together.
        progress: rank 0 shows progress as it would.
        module: what each process runs; takes the path of the request.
        others: all other arguments of `train()`.

    Returns:
        metrics, timings: what rank 0 measured.

    Raises:
        ConfigError: more processes than devices, or a process refused the configuration.
        OutOfMemory: a process ran out of memory.
        AvaError: a process failed or was killed; all others have been ended.
    """
    size = world_size(train_config)
    if train_config.hostfile is None:
        require_devices(train_config.processes)
    folder = state / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("failure-rank-*.json"), folder / "result.json"):
        left.unlink(missing_ok=True)
    arguments = {"train_config": train_config, "state": state, **others}
    arguments["threads"] = max(1, threads // train_config.processes)
    level, file = _log_settings()
    request = {"arguments": encode(arguments), "quiet": progress.quiet, "log_level": level, "log_file": file}
    path = folder / "request.json"
    path.write_text(json.dumps(request, indent=2) + "\n")
    log.info("train: %d processes with %d threads each", size, arguments["threads"])
    if train_config.hostfile is None:
        _run_here(size, [sys.executable, "-m", module, str(path), str(os.getpid())], folder)
    else:
        _run_on_hosts(train_config, module, path)
    try:
        return json.loads((folder / "result.json").read_text())
    except FileNotFoundError as error:
        raise AvaError(f"the training processes ended without a result (logs: {folder})") from error


def _run_here(size: int, command: list[str], folder: Path) -> None:
    workers: list[subprocess.Popen] = []
    # Listening before anyone connects: no other program can take the port between its choice and its use.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        try:
            for rank in range(size):
                environment = _environment(rank, size, port)
                if rank == 0:
                    environment[LISTEN_DESCRIPTOR] = str(listener.fileno())
                workers.append(_start(command, environment, (listener.fileno(),) if rank == 0 else ()))
            listener.close()
            _wait(workers, folder)
        finally:
            _end(workers)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, and LOCAL_SIZE, by which DeepSpeed knows that all are on one machine."""
    environment = _without_launcher()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "LOCAL_SIZE": size}
    environment |= {name: str(value) for name, value in ranks.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "lo" in (name for _, name in socket.if_nameindex()):  # the machine's own name need not resolve
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _without_launcher() -> dict[str, str]:
    ours = {name for names in FAMILIES.values() for name in names} | set(LOCAL_SIZES) | {"MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def _start(command: list[str], environment: Mapping[str, str], descriptors: tuple[int, ...] = ()) -> subprocess.Popen:
    """A process in a group of its own: Ctrl-C reaches this process alone, which then ends the others in order."""
    return subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0
    )


def _wait(workers: list[subprocess.Popen], folder: Path) -> None:
    """Until all have ended well; at the first that hasn't, raise what happened."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            codes = [worker.poll() for worker in workers]  # the cause may have ended just after its consequence
            raise _explain(dict(enumerate(codes)), folder)
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_SECONDS)


def _explain(codes: Mapping[int, int | None], folder: Path) -> Exception:
    """The cause among all that went wrong: a reported error, then a death by signal, then what is left."""
    reported = failures.read(folder)
    for causes in (("config", "integrity", "out_of_memory", "error"), ("defect",)):
        for rank, failure in sorted(reported.items()):
            if failure["kind"] in causes:
                return failures.rebuild(failure, _log_of(folder, rank))
        for rank, code in codes.items():
            if code is not None and code < 0:
                return AvaError(
                    f"the training process of rank {rank} was killed by {signal.Signals(-code).name}: run the same"
                    " command again to go on from the last checkpoint; if the kernel did it, memory has run out"
                )
    for rank, code in codes.items():
        if code and rank not in reported:
            return AvaError(
                f"the training process of rank {rank} ended with exit code {code} (log: {_log_of(folder, rank)})"
            )
    rank, failure = min(reported.items())
    return failures.rebuild(failure, _log_of(folder, rank))


def _log_of(folder: Path, rank: int) -> Path | None:
    file = _log_settings()[1]
    if rank:
        return folder / f"rank-{rank}.log"
    return Path(file) if file else None


def _end(processes: list[subprocess.Popen]) -> None:
    """End all that still run, with whatever they have started: politely, then not."""
    for number, patience in ((signal.SIGTERM, PATIENCE_SECONDS), (signal.SIGKILL, PATIENCE_SECONDS)):
        running = [process for process in processes if process.poll() is None]
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))


def _run_on_hosts(config: TrainConfig, module: str, request: Path) -> None:
    assert config.hostfile is not None
    hosts = list(read_hostfile(Path(config.hostfile)))
    arguments = ["--hostfile", str(Path(config.hostfile).absolute()), "--num_gpus", str(config.processes), "--quiet"]
    with socket.create_server(("", 0)) as listener:
        arguments += ["--master_port", str(listener.getsockname()[1])]
    if len(hosts) == 1 and hosts[0] in LOCAL_NAMES:
        arguments += ["--master_addr", "127.0.0.1", "--no_ssh_check"]
    arguments += ["--no_local_rank", "--module", module, str(request)]
    launcher = _start([sys.executable, "-m", __name__, str(os.getpid()), *arguments], _without_launcher())
    try:
        code = launcher.wait()
    finally:
        _end([launcher])
    if (request.parent / "result.json").exists() and not code:
        return
    if reported := failures.read(request.parent):
        silent = [rank for rank in range(len(hosts) * config.processes) if rank not in reported]
        if all(failure["kind"] == "lost_peer" for failure in reported.values()) and silent:
            raise AvaError(
                f"the training process of rank {silent[0]} ended without a message (logs: {request.parent}): run the"
                " same command again to go on from the last checkpoint"
            )
        raise _explain({}, request.parent)
    raise AvaError(f"DeepSpeed's launcher ended with exit code {code} and without a result (logs: {request.parent})")


def _log_settings() -> tuple[str, str | None]:
    """Level of the terminal and path of the log file of this process, for rank 0 to go on with."""
    level, file = "info", None
    for handler in logging.getLogger("ava_core").handlers:
        if isinstance(handler, logging.FileHandler):
            file = handler.baseFilename
        elif isinstance(handler, logging.StreamHandler):
            level = logging.getLevelName(handler.level).lower()
    return level, file


def _launch_on_hosts() -> None:
    """DeepSpeed's launcher in a process that ends, with all that it has started, when `ava` does."""

    def end_all(number: int, frame: object) -> NoReturn:
        os.killpg(0, signal.SIGKILL)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end_all)  # with several machines the launcher replaces it, to end remote processes
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    from ava_core.distributed.ranks import import_deepspeed

    import_deepspeed()
    from deepspeed.launcher.runner import main

    main(sys.argv[2:])


if __name__ == "__main__":
    _launch_on_hosts()
