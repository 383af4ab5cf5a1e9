"""Exceptions of worker processes, serialised as JSON for the process that started them.

A `ConfigError` must still end the step with exit code 2 and its own lines when a worker raised it, and the cause of a
failure must be told from its consequences: when one process ends, all others lose a connection.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ava_core.distributed.peers import is_lost_connection
from ava_core.errors import AvaError, ConfigError, IntegrityError, one_line, typed_line
from ava_core.files import write_json


def describe(error: BaseException, rank: int) -> dict[str, Any]:
    """rank, kind, message (its lines as a list) and exit code."""
    lines = list(error.faults) if isinstance(error, ConfigError) else [one_line(str(error))]
    kind = _kind(error)
    if kind == "defect":
        lines = [typed_line(error)]
    return {"rank": rank, "kind": kind, "message": lines, "exit_code": getattr(error, "exit_code", 1)}


def _kind(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return "config"
    if isinstance(error, IntegrityError):
        return "integrity"
    # Not imported here, for it imports torch: if the error is of that class, its module is loaded.
    module = sys.modules.get("ava_core.training.memory.out_of_memory")
    if module is not None and isinstance(error, module.OutOfMemory):
        return "out_of_memory"
    if is_lost_connection(error):
        return "lost_peer"
    return "error" if isinstance(error, AvaError) else "defect"


def rebuild(failure: dict[str, Any], log: Path | None = None) -> Exception:
    """The exception that `describe` serialised, with the rank in its message where that helps.

    Args:
        failure: what `describe` gave.
        log: where the traceback is, named in the message of a defect.
    """
    rank, lines = failure["rank"], failure["message"]
    if failure["kind"] == "config":  # about settings, and the same in all processes
        return ConfigError(*lines)
    message = " ".join(lines)
    if failure["kind"] == "integrity":
        return IntegrityError(message)
    if failure["kind"] == "out_of_memory":
        from ava_core.training.memory.out_of_memory import OutOfMemory

        return OutOfMemory(f"rank {rank}: {message}")
    if failure["kind"] == "defect":
        return AvaError(f"the training process of rank {rank} failed: {message}" + (f" (log: {log})" if log else ""))
    return AvaError(f"rank {rank}: {message}")


def write(folder: Path, error: BaseException, rank: int) -> dict[str, Any]:
    """Write `failure-rank-N.json` into `folder`; gives what it holds."""
    failure = describe(error, rank)
    write_json(folder / f"failure-rank-{rank}.json", failure)
    return failure


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """Failures in `folder`, by rank."""
    found = (json.loads(path.read_text()) for path in folder.glob("failure-rank-*.json"))
    return {failure["rank"]: failure for failure in found}


def explain(codes: Mapping[int, int | None], folder: Path, log_of_first: Path | None) -> Exception:
    """The root cause of a failed run: a reported error before a death by signal, lost connections last.

    Args:
        codes: exit code by rank, negative for a signal; None: it still runs.
        folder: has the failures of all ranks, and the logs of ranks above 0.
        log_of_first: the log of rank 0.
    """
    reported = read(folder)

    def log_of(rank: int) -> Path | None:
        return folder / f"rank-{rank}.log" if rank else log_of_first

    for causes in (("config", "integrity", "out_of_memory", "error"), ("defect",)):
        for rank, failure in sorted(reported.items()):
            if failure["kind"] in causes:
                return rebuild(failure, log_of(rank))
        for rank, code in codes.items():
            if code is not None and code < 0:
                return AvaError(
                    f"the training process of rank {rank} was killed by {signal.Signals(-code).name}: run the same"
                    " command again to go on from the last checkpoint; if the kernel did it, memory has run out"
                )
    for rank, code in codes.items():
        if code and rank not in reported:
            return AvaError(f"the training process of rank {rank} ended with exit code {code} (log: {log_of(rank)})")
    rank, failure = min(reported.items())
    return rebuild(failure, log_of(rank))
