"""Tasks as containers of the local Docker engine.

kfp.local's own DockerRunner removes a container when it ends and takes one that is gone for a success, so that a failed
step passes (kubeflow/pipelines#13332). Here a container is waited for, its exit code and whether the kernel's OOM
killer ended it are read, and then it is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError
from pipelines.executor import Ending, split_lines

PASSED_ON = (
    *("AVA_KERNELS", "AVA_LOG_LEVEL", "AVA_ONNX_PROVIDER", "HF_TOKEN", "http_proxy", "https_proxy", "no_proxy"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)
"""Variables of the caller that a task gets too, in small letters or capitals."""
PASSED_ON_PREFIXES = ("MLFLOW_", "AWS_")
"""Those of addresses and credentials of the tracking server and the object store."""
LABEL = "ava.run"
SHARED_MEMORY = "2g"
"""Ranks on one machine exchange gradients in /dev/shm, for which Docker gives 64 MB; it takes memory as it is used."""
PIECE_BYTES = 16 * 1024
"""The engine keeps longer lines in pieces of this size (moby, daemon/logger/copier.go)."""
ENGINE_SECONDS = 60
"""Time limit of a call to the engine's API."""


class DockerExecutor:
    """Starts containers that see the machine's network and the given folders, and nothing else of it.

    Folders are bind-mounted at their own paths, so that every path means the same inside and outside. The root file
    system is read-only, /tmp is in memory, and the user is the caller, who so owns what the steps write.

    Args:
        environment: the caller's variables; those of PASSED_ON reach the tasks.
        writable: folders to write to; made if they aren't there.
        readable: folders and files to read; one that isn't there is left for the step to miss.

    Raises:
        AvaError: no engine answers.
    """

    def __init__(self, environment: Mapping[str, str], *, writable: Sequence[Path], readable: Sequence[Path]) -> None:
        self.client = _connect()
        self.environment = {
            **{name: value for name, value in environment.items() if _is_passed_on(name)},
            "HOME": "/tmp",  # noqa: S108 - the container's own
        }
        for folder in writable:
            folder.mkdir(parents=True, exist_ok=True)
        seen = [path for path in readable if path.exists()]
        # A folder that is to be both is writable.
        self.read_only = dict.fromkeys((*seen, *caches_behind(seen)), True) | dict.fromkeys(writable, False)

    def labels(self, image: str) -> dict[str, str]:
        """The labels of an image, which must be here: nothing is pulled without being asked for.

        Raises:
            AvaError: it isn't.
        """
        from docker.errors import ImageNotFound

        try:
            return dict(self.client.images.get(image).labels)
        except ImageNotFound as error:
            raise AvaError(
                f"{image}: no such image here: build it with `make images`, or fetch it with `docker pull`"
            ) from error

    def start(self, command: Sequence[str], *, image: str, name: str, variables: Mapping[str, str]) -> DockerTask:
        """Start a container, which must be closed."""
        with _engine_errors(name):
            container = self.client.containers.create(
                image,
                list(command),
                name=name,
                environment={**self.environment, **variables},
                mounts=self._mounts(),
                tmpfs={"/tmp": "rw,mode=1777"},  # noqa: S108 - the container's own
                working_dir="/tmp",  # noqa: S108
                user=f"{os.getuid()}:{os.getgid()}",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                network_mode="host",
                shm_size=SHARED_MEMORY,
                # An init of its own passes signals on and reaps; as process 1 a step would ignore them.
                init=True,
                log_config={"Type": "json-file"},
                healthcheck={"test": ["NONE"]},  # the image's is for servers; it would cost a start of `ava` a minute
                labels={LABEL: name},
            )
        task = DockerTask(container)
        try:
            with _engine_errors(name):
                container.start()
        except BaseException:
            task.close()
            raise
        return task

    def _mounts(self) -> list[Any]:
        from docker.types import Mount

        return [
            Mount(str(path), str(path), type="bind", read_only=read_only) for path, read_only in self.read_only.items()
        ]


def caches_behind(paths: Iterable[Path]) -> set[Path]:
    """DVC's caches that links among the files of `paths` lead into (`cache.type symlink`).

    Nothing else behind a link is shown to a container; what a cache holds is called by its digest, and steps check it.
    """
    found = set()
    for top in paths:
        for path in (top, *top.rglob("*")):
            target = Path(os.path.realpath(path))
            if path.is_symlink() and target.parts[-4:-2] == ("files", "md5"):
                found.add(target.parents[1])
    return found


class DockerTask:
    """A container that was started, as a `RunningTask`."""

    def __init__(self, container: Any) -> None:
        self._container = container

    @property
    def handle(self) -> str:
        """See `RunningTask`."""
        return self._container.name

    def lines(self) -> Iterator[bytes]:
        """See `RunningTask`."""
        with contextlib.suppress(*_errors()):  # the wait tells what happened
            yield from whole_lines(self._frames())

    def _frames(self) -> Iterator[bytes]:
        """The log as it comes; then what the engine has dropped at its end: `follow` races with the last lines."""
        count = 0
        for frame in self._container.logs(stream=True, follow=True):
            count += 1
            yield frame
        self._container.wait()
        yield from islice(self._container.logs(stream=True, follow=False), count, None)

    def wait(self, seconds: float | None = None) -> Ending | None:
        """See `RunningTask`. A container that somebody else removed has failed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with _engine_errors(self._container.name):
            while True:
                self._wait_once(None if deadline is None else max(deadline - time.monotonic(), 0.01))
                self._container.reload()
                state = self._container.attrs["State"]
                if not state["Running"]:
                    return Ending(code=state["ExitCode"], out_of_memory=state["OOMKilled"])
                if deadline is not None and time.monotonic() >= deadline:
                    return None

    def _wait_once(self, seconds: float | None) -> None:
        """Wait until it ends, the time is up, or the connection is lost; its state tells which."""
        import requests

        with contextlib.suppress(requests.ReadTimeout, requests.ConnectionError):
            self._container.wait(timeout=seconds)

    def terminate(self) -> None:
        """See `RunningTask`."""
        self._kill("SIGTERM")

    def kill(self) -> None:
        """See `RunningTask`."""
        self._kill("SIGKILL")

    def close(self) -> None:
        """See `RunningTask`."""
        with contextlib.suppress(*_errors()):
            self._container.remove(force=True, v=True)

    def _kill(self, number: str) -> None:
        with contextlib.suppress(*_errors()):  # it has just ended
            self._container.kill(number)


def remove(name: str) -> None:
    """End and remove a container that an earlier process of ours has left, if it is there."""
    with contextlib.suppress(AvaError, *_errors()):
        _connect().containers.get(name).remove(force=True, v=True)


def whole_lines(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, with their ends, from the frames of a log: one for each line of either stream, or for a piece of one.

    A shorter frame without an end is the last of its stream, and the next one may be of the other.
    """
    line = b""
    for frame in frames:
        line += frame
        if len(frame) == PIECE_BYTES and not frame.endswith(b"\n"):
            continue
        yield from split_lines([line if line.endswith(b"\n") else line + b"\n"])
        line = b""
    if line:
        yield line


def _connect() -> Any:
    from docker.client import DockerClient

    try:
        client = DockerClient.from_env(timeout=ENGINE_SECONDS)
        client.ping()
    except _errors() as error:
        raise AvaError(
            f"no Docker engine answers ({_first_line(error)}): start one, name it in DOCKER_HOST, or use --runner host"
        ) from error
    return client


@contextlib.contextmanager
def _engine_errors(name: str) -> Iterator[None]:
    """Turn what the engine says into one line."""
    try:
        yield
    except _errors() as error:
        raise AvaError(f"container {name}: {_first_line(error)}") from error


def _errors() -> tuple[type[Exception], ...]:
    """What the client raises: its own, and those of the connection."""
    from docker.errors import DockerException
    from requests import RequestException

    return (DockerException, RequestException)


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return (text.splitlines() or [type(error).__name__])[0][:300]


def _is_passed_on(name: str) -> bool:
    return any(known in PASSED_ON for known in (name, name.lower())) or name.startswith(PASSED_ON_PREFIXES)
