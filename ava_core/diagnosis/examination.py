"""All checks, side by side: those that wait for a server or a program hold nobody up."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ava_core.diagnosis import checkout, installed, processor, proxies, services, storage, tracking_server
from ava_core.diagnosis.finding import Finding, warn
from ava_core.errors import typed_line

PATIENCE = 2.2
"""Seconds after which a check that hasn't ended is told as such."""
DEFAULT_WORK = Path(".ava/work")


@dataclass(frozen=True)
class Place:
    """Attributes:
    folder: the current folder.
    work: the work folder.
    environment: variables.
    """

    folder: Path
    work: Path
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> Place:
        """That of this process."""
        return cls(Path(), Path(os.environ.get("AVA_WORK") or DEFAULT_WORK), dict(os.environ))


Check = Callable[[Place], Iterable[Finding]]
CHECKS: dict[str, Check] = {
    "python": lambda place: installed.check_python(),
    "packages": lambda place: installed.check_packages(),
    "compiler": lambda place: processor.check_compiler(),
    "kernels": lambda place: processor.check_kernels(place.environment),
    "cores": lambda place: processor.check_cores(place.environment),
    "memory": lambda place: processor.check_memory(),
    "gpu": lambda place: processor.check_gpus(place.environment),
    "disk": lambda place: storage.check_disk("disk of this folder", place.folder),
    "work": lambda place: storage.check_disk("disk of the work folder", place.work),
    "docker": lambda place: services.check_docker(place.environment),
    "mlflow": lambda place: tracking_server.check_tracking(place.folder, place.environment),
    "git": lambda place: checkout.check_git(place.folder, place.environment),
    "dvc": lambda place: checkout.check_dvc(place.folder),
    "settings": lambda place: checkout.check_settings(place.folder),
    "proxy": lambda place: proxies.check_proxies(place.environment),
    "index": lambda place: proxies.check_index(place.environment),
}
"""What is looked at, in the order in which it is told."""


def examine(place: Place, checks: Mapping[str, Check] = CHECKS, patience: float | None = None) -> list[Finding]:
    """What all checks found, in their order, after `patience` seconds at most; None: PATIENCE."""
    patience = PATIENCE if patience is None else patience
    answers: queue.Queue[tuple[str, list[Finding]]] = queue.Queue()

    def run(name: str) -> None:
        try:
            found = list(checks[name](place))
        except Exception as error:  # a diagnosis that ends at its first surprise helps nobody
            found = [warn(name, f"can't be looked at: {typed_line(error)}", "report it: a fault of `ava doctor`")]
        answers.put((name, found))

    for name in checks:
        # Daemons: a name that is still being looked up must not keep the program from ending.
        threading.Thread(target=run, args=(name,), daemon=True, name=f"doctor-{name}").start()
    deadline = time.monotonic() + patience
    known: dict[str, list[Finding]] = {}
    while len(known) < len(checks):
        try:
            name, found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        known[name] = found
    late = warn("", f"no answer within {patience:g} s", "look at what it waits for, or try again")
    return [finding for name in checks for finding in known.get(name, [replace(late, what=name)])]
