"""Processes that take turns, so that noise on the machine hits all of them alike.

Every subject lives in a process of its own, with its own allocator and threads, and waits for its turn in a blocking
read that uses no CPU. Only one works at a time. A controller holds `Worker`s; the other end is this module run as
`python -m benchmarks.turns MODULE:FACTORY JSON`: it calls the factory with the JSON's fields and then, for each line
`{"call": NAME, ...}` on its standard input, that method of what the factory returned.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
SETTLE_SECONDS = 0.05
"""Between two turns: by then the threads of the worker before have stopped spinning on their barrier."""


class WorkerFailed(RuntimeError):
    """A worker answered with an error, or ended."""


class Worker:
    """The controller's end of one process, in the controller's process group.

    Args:
        name: of the subject, for messages.
        factory: `module:function`; called in the process with `arguments`, which must fit JSON.
        python: interpreter, for a subject that needs other packages than ours.
        environment: what the process has beside or instead of this one's variables.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        arguments: dict[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.turns", factory, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Block until the factory has returned.

        Raises:
            WorkerFailed: it raised.
        """
        self._answer()

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the subject and return what it returned.

        Raises:
            WorkerFailed: it raised, or the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerFailed(self._ended()) from error
        return self._answer()

    def close(self) -> None:
        """End the process: its input closes, and if that isn't enough it gets a signal, by its id."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
                break
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._ended())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}")
        return answer

    def _ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        return f"{self.name}: the process ended with code {self._process.returncode}"


class Workers:
    """A context with one process per subject; all have ended when it's left, by an exception or Ctrl-C too.

    Attributes:
        alive: workers by name, in order. One that fails leaves it.
        failures: why, by name.

    Args:
        subjects: name, factory and arguments of each.
        pythons: interpreters by name, for subjects that need other packages than ours.
        environments: variables by name, for subjects that have others than this process.
    """

    def __init__(
        self,
        subjects: Iterable[tuple[str, str, dict[str, Any]]],
        pythons: Mapping[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ):
        self._subjects = list(subjects)
        self._pythons = pythons or {}
        self._environments = environments or {}
        self._started: list[Worker] = []
        self.alive: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}

    def __enter__(self) -> Workers:
        try:
            for name, factory, arguments in self._subjects:
                python, environment = self._pythons.get(name, sys.executable), self._environments.get(name)
                worker = Worker(name, factory, arguments, python, environment)
                self._started.append(worker)
                self.alive[name] = worker
            for name in list(self.alive):
                self._guard(name, lambda worker: worker.wait_until_ready())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._started:
            worker.close()

    def ask_each(self, call: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        """One round: every worker that is alive does the same call, one after the other."""
        answers: dict[str, dict[str, Any]] = {}
        for name in list(self.alive):
            answer = self._guard(name, lambda worker: worker.ask(call, **arguments))
            if answer is not None:
                answers[name] = answer
            time.sleep(SETTLE_SECONDS)
        return answers

    def _guard(self, name: str, action: Callable[[Worker], Any]) -> Any:
        try:
            return action(self.alive[name])
        except WorkerFailed as error:
            self.failures[name] = str(error)
            del self.alive[name]
            return None


def take_turns(
    workers: Workers, rounds: int, warmup: int, steps: int, on_round: Callable[[int], None] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """`warmup + rounds` rounds of `turn(steps=...)`; the answers of the last `rounds`, by worker.

    A worker that fails in any round has no entry, so all lists have the same length and round i is the same for all.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers.alive}
    for index in range(warmup + rounds):
        for name, answer in workers.ask_each("turn", steps=steps).items():
            if index >= warmup:
                answers[name].append(answer)
        if on_round is not None:
            on_round(index + 1)
    return {name: given for name, given in answers.items() if name in workers.alive}


def serve(make: Callable[[], Any], requests: Iterable[str], answers: TextIO) -> None:
    """The worker's end: make the subject, say so with an empty answer, then answer each line until there are none."""

    def answer(compute: Callable[[], dict[str, Any] | None]) -> bool:
        try:
            given, done = compute() or {}, True
        except Exception as error:
            given, done = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}, False
        answers.write(json.dumps(given) + "\n")
        answers.flush()
        return done

    subject: Any = None

    def build() -> None:
        nonlocal subject
        subject = make()

    if not answer(build):
        return
    for line in requests:
        request = json.loads(line)
        answer(partial(getattr(subject, request.pop("call")), **request))


def main(arguments: Sequence[str]) -> None:
    """Entry of a worker process."""
    # Ctrl-C reaches the whole group; the controller decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print; only answers may reach the controller.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, function = arguments[0].partition(":")

    def make() -> Any:
        return getattr(importlib.import_module(module), function)(**json.loads(arguments[1]))

    with suppress(BrokenPipeError):  # the controller is gone
        serve(make, iter(sys.stdin.readline, ""), answers)


if __name__ == "__main__":
    main(sys.argv[1:])
