"""`ava train` as one of several processes that torchrun, mpirun or DeepSpeed's launcher has started.

Rank 0 alone goes through the step contract: it verifies, locks, writes and copies the output. The others wait until it
announces, over the store that the processes meet at, one of three things: train with these arguments; there is nothing
to do, for the output is finished already; or it has failed, and with which exit code. So none waits for a rank 0 that
will never come to the training.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ava_core.config.hosts import world_size
from ava_core.config.threads import limit_threads
from ava_core.distributed.group import TIMEOUT, require_devices, store_of
from ava_core.distributed.peers import LostPeer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.launching.requests import decode, encode, training_function
from ava_core.progress import Progress
from ava_core.runtime import logs
from ava_core.runtime.request import Request, StepRun
from ava_core.runtime.step import run_step
from ava_core.training.request import TrainRequest

log = logging.getLogger(__name__)
_ANNOUNCEMENT, _HEARD = "ava_announcement", "ava_heard"
POLL_SECONDS = 0.2
FAILURE_PATIENCE = timedelta(seconds=60)
"""How long a rank 0 that has failed waits for others that are still starting, to tell them."""

_announced = False


def run_step_as_rank(request: Request, compute: Callable[[StepRun], None]) -> None:
    """`run_step`, by rank 0 alone, where this process is one of several; as it is otherwise.

    Raises:
        ConfigError: the number of processes is not the one of the configuration, or there are too few devices.
        SystemExit: rank 0 has failed, with its exit code.
    """
    ranks = Ranks.from_environment()
    if ranks.size == 1:
        run_step(request, compute)
        return
    expected = world_size(request.training)
    if ranks.size != expected:
        section = request.spec.training
        machines = f" on each machine of {section}.hostfile" if request.training.hostfile else ""
        raise ConfigError(
            f"environment: {ranks.size} processes were started, but {section}.processes ="
            f" {request.training.processes}{machines} makes {expected}: start {expected}, or change {section}.processes"
        )
    if ranks.is_first:
        _run_as_rank_zero(ranks, request, compute)
    else:
        _run_as_other_rank(ranks, request)


def announce_training(request: TrainRequest) -> None:
    """Tell the other ranks to train too; does nothing in a process alone."""
    ranks = Ranks.from_environment()
    if ranks.size > 1:
        require_devices(ranks.local_size or ranks.local_rank + 1)
        _announce(ranks, {"do": "train", "request": encode(request)}, TIMEOUT)


def _run_as_rank_zero(ranks: Ranks, request: Request, compute: Callable[[StepRun], None]) -> None:
    global _announced
    _announced = False
    try:
        run_step(request, compute)
    except Exception as error:  # at a signal the launcher ends the others itself
        if not _announced:
            code = getattr(error, "exit_code", 1)
            try:
                _announce(ranks, {"do": "fail", "exit_code": code}, FAILURE_PATIENCE)
            except LostPeer as lost:
                log.debug("%s", lost)
        raise
    if not _announced:
        _announce(ranks, {"do": "nothing"}, TIMEOUT)


def _announce(ranks: Ranks, message: dict[str, Any], timeout: timedelta) -> None:
    """Publish a message and wait until all ranks have read it: the store may end with this process."""
    global _announced
    _announced = True
    store = store_of(ranks, timeout)
    store.set(_ANNOUNCEMENT, json.dumps(message))
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(_HEARD, 0) < ranks.size - 1:
        if time.monotonic() > deadline:
            raise LostPeer(f"rank 0: {ranks.size - 1 - store.add(_HEARD, 0)} of {ranks.size} processes don't answer")
        time.sleep(POLL_SECONDS)


def _run_as_other_rank(ranks: Ranks, request: Request) -> None:
    file = request.output.with_name(f"{request.output.name}.rank-{ranks.rank}.log")
    logs.configure("error", file)
    limit_threads(ranks.threads_of_each(request.threads))
    message = _await_announcement(ranks)
    if message["do"] == "nothing":
        log.info("rank 0 has nothing to compute")
    elif message["do"] == "fail":
        log.info("rank 0 has failed before the training")
        sys.exit(message["exit_code"])
    else:
        training = decode(message["request"])
        # This machine may have other threads than rank 0's, and the folders in another place; a registered model has
        # been fetched by rank 0 for all.
        here = replace(
            training,
            threads=request.threads,
            shards=_own(request, "conversations", "preferences", "prompts", "shards") or training.shards,
            init=_own(request, "init", "model") or training.init,
            teacher=_own(request, "teacher") or training.teacher,
        )
        training_function(training.step)(here, Progress(quiet=True))


def _own(request: Request, *names: str) -> Path | None:
    """The folder that this process was given for the first of these inputs that the step has."""
    return next((folder for name in names for folder in request.inputs.get(name, ())), None)


def _await_announcement(ranks: Ranks) -> dict[str, Any]:
    """Wait, as long as it takes: rank 0 may be waiting for another run of the same work to finish."""
    try:
        store = store_of(ranks)
        while not store.check([_ANNOUNCEMENT]):
            time.sleep(POLL_SECONDS)
        message = json.loads(store.get(_ANNOUNCEMENT))
        store.add(_HEARD, 1)
    except RuntimeError as error:
        raise LostPeer(f"rank {ranks.rank}: rank 0 has gone before the training began") from error
    return message
