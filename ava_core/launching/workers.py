"""A training in worker processes: the request file that they read, and the result or failure files that they write."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from ava_core.config.hosts import world_size
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError
from ava_core.launching.hosts import run_on_hosts
from ava_core.launching.processes import run_here
from ava_core.launching.requests import encode
from ava_core.training.request import TrainRequest, TrainResult

log = logging.getLogger(__name__)
WORKER = "ava_core.launching.worker"


def train_in_processes(request: TrainRequest, *, quiet: bool, module: str = WORKER) -> TrainResult:
    """Train in `train.processes` processes on each machine, and wait for them.

    Request, logs and result are files in the folder `processes` of the state folder.

    Args:
        request: what is trained; its threads are those of all processes of a machine together.
        quiet: rank 0 shows no progress.
        module: what each process runs; takes the path of the request.

    Returns:
        What rank 0 measured.

    Raises:
        ConfigError: a process refused the configuration.
        OutOfMemory: a process ran out of memory.
        AvaError: a process failed or was killed; all others have been ended.
    """
    config = request.train_config
    size = world_size(config)
    folder = request.state / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("failure-rank-*.json"), folder / "result.json"):
        left.unlink(missing_ok=True)
    level, file = _log_settings()
    path = folder / "request.json"
    message = {"request": encode(request), "quiet": quiet, "log_level": level, "log_file": file}
    path.write_text(json.dumps(message, indent=2) + "\n")
    threads = Ranks(size=size, local_size=config.processes).threads_of_each(request.threads)
    log.info("train: %d processes with %d threads each", size, threads)
    if config.hostfile is None:
        command = [sys.executable, "-m", module, str(path), str(os.getpid())]
        run_here(size, command, folder, log_of_first=Path(file) if file else None)
    else:
        run_on_hosts(config, module, path, log_of_first=Path(file) if file else None)
    try:
        return TrainResult(**json.loads((folder / "result.json").read_text()))
    except FileNotFoundError as error:
        raise AvaError(f"the training processes ended without a result (logs: {folder})") from error


def _log_settings() -> tuple[str, str | None]:
    """Level of the terminal and path of the log file of this process, for rank 0 to go on with."""
    level, file = "info", None
    for handler in logging.getLogger("ava_core").handlers:
        if isinstance(handler, logging.FileHandler):
            file = handler.baseFilename
        elif isinstance(handler, logging.StreamHandler):
            level = logging.getLevelName(handler.level).lower()
    return level, file
