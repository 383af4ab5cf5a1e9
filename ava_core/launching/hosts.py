"""Training processes on several machines, started by DeepSpeed's launcher through pdsh and ssh.

    python -m ava_core.launching.hosts PARENT ARGUMENTS...     # that launcher, for the process PARENT

All machines must see the work folder under the same path.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from ava_core.config.hosts import read_hostfile
from ava_core.config.train import TrainConfig
from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.errors import AvaError
from ava_core.launching import failures
from ava_core.launching.lifetime import die_with_parent
from ava_core.launching.processes import end, environment_without_launcher, start

LOCAL_NAMES = ("localhost", "127.0.0.1")


def run_on_hosts(config: TrainConfig, module: str, request: Path, log_of_first: Path | None) -> None:
    """Run a module in `train.processes` processes on each machine of `train.hostfile`, until all have ended.

    Args:
        config: names the machines.
        module: takes the path of the request.
        request: the processes leave `result.json` or their failures beside it.
        log_of_first: the log of rank 0, for messages.

    Raises:
        AvaError: a process failed; or the class that it failed with.
    """
    assert config.hostfile is not None
    hosts = list(read_hostfile(Path(config.hostfile)))
    arguments = ["--hostfile", str(Path(config.hostfile).absolute()), "--num_gpus", str(config.processes), "--quiet"]
    with socket.create_server(("", 0)) as listener:
        arguments += ["--master_port", str(listener.getsockname()[1])]
    if len(hosts) == 1 and hosts[0] in LOCAL_NAMES:
        arguments += ["--master_addr", "127.0.0.1", "--no_ssh_check"]
    arguments += ["--no_local_rank", "--module", module, str(request)]
    launcher = start([sys.executable, "-m", __name__, str(os.getpid()), *arguments], environment_without_launcher())
    try:
        code = launcher.wait()
    finally:
        end([launcher])
    folder = request.parent
    if (folder / "result.json").exists() and not code:
        return
    if reported := failures.read(folder):
        silent = [rank for rank in range(len(hosts) * config.processes) if rank not in reported]
        if all(failure["kind"] == "lost_peer" for failure in reported.values()) and silent:
            raise AvaError(
                f"the training process of rank {silent[0]} ended without a message (logs: {folder}): run the"
                " same command again to go on from the last checkpoint"
            )
        raise failures.explain({}, folder, log_of_first)
    raise AvaError(f"DeepSpeed's launcher ended with exit code {code} and without a result (logs: {folder})")


def main() -> None:
    """Run DeepSpeed's launcher, which ends with its whole process group when the parent does."""

    def end_all(number: int, frame: object) -> NoReturn:
        os.killpg(0, signal.SIGKILL)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end_all)  # with several machines the launcher replaces it, to end remote processes
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    import_deepspeed()
    from deepspeed.launcher.runner import main

    main(sys.argv[2:])


if __name__ == "__main__":
    main()
