"""One process of a training with several: `python -m ava_core.launching.worker REQUEST [PARENT]`.

Started by `processes` or `hosts`, with the environment of its rank. It trains as the request says; rank 0 writes
`result.json` beside the request, a process that fails `failure-rank-N.json`. Only rank 0 writes to the terminal,
the others to `rank-N.log`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ava_core.config.threads import limit_threads
from ava_core.distributed import heartbeat
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError
from ava_core.files import write_json
from ava_core.interruption import handle_signals, outlive_terminal
from ava_core.launching import failures
from ava_core.launching.lifetime import die_with_parent
from ava_core.launching.requests import TrainingFunction, decode, training_function
from ava_core.progress import Progress
from ava_core.runtime import logs

log = logging.getLogger(__name__)


def main(train: TrainingFunction | None = None) -> NoReturn:
    """Work as one rank, and end with its exit code.

    Args:
        train: instead of the step's function, for tests.
    """
    path = Path(sys.argv[1])
    die_with_parent(int(sys.argv[2]) if len(sys.argv) > 2 else None)
    handle_signals()
    outlive_terminal()
    ranks = Ranks.from_environment()
    heartbeat.when_lost = lambda error: _fail(path.parent, error, ranks.rank)
    try:
        request = _read(path)
        _configure_output(ranks, path.parent, request)
        training = decode(request["request"])
        limit_threads(ranks.threads_of_each(training.threads))
        train = train or training_function(training.step)
        result = train(training, Progress(quiet=request["quiet"] or not ranks.is_first))
        if ranks.is_first:
            write_json(path.parent / "result.json", asdict(result))
    except SystemExit as error:
        _end(error.code if isinstance(error.code, int) else 1)
    except BaseException as error:
        _fail(path.parent, error, ranks.rank)
    _end(0)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise AvaError(f"{path}: no such file here: --work must be on storage that all machines share") from error


def _configure_output(ranks: Ranks, folder: Path, request: dict[str, Any]) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    if ranks.is_first:
        file = request["log_file"]
        logs.configure(request["log_level"], Path(file) if file else None)
        return
    descriptor = os.open(folder / f"rank-{ranks.rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    logs.configure("debug")


def _fail(folder: Path, error: BaseException, rank: int) -> NoReturn:
    code = 1
    try:
        code = failures.write(folder, error, rank)["exit_code"]
        log.debug("traceback", exc_info=True, extra={"file_only": rank == 0})
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End at once: neither a thread nor a destructor of a library may hold up the other processes."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
