"""`ava serve` as a process, for benchmarks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "m"
"""What clients call the model."""


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server of an exported model, which ends with the context."""
    command = [sys.executable, "-m", "ava_core.cli.main", "serve", "--model", str(model), "--port", "0", "--name", NAME]
    command += options
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            words = server.stdout.readline().split()
            address = next((word for word in words if word.startswith("http://")), None)
            if address is None:
                raise SystemExit("ava serve: didn't start")
            yield address, server.pid
        finally:
            server.terminate()
