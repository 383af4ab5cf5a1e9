"""Two machines for the tests: containers with addresses of their own, as the pods of a TrainJob are.

Each runs the image that the cluster would pull, as its user, with a read-only root and without privileges; a node runs
the sshd of `launching.runtime`, the launcher the command of `launching.trainjob`. What Kubeflow Trainer's controller
mounts is mounted here: the pair of keys, the hostfile, and a folder that all share, for the volume.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ava_core.launching.mpi import HOSTFILE, SSH_FOLDER
from ava_core.launching.runtime import GROUP, USER, node_command
from ava_core.launching.trainjob import job_command
from ava_core.runtime.code import code_of
from ava_core.steps.table import STEPS

START_SECONDS = 60.0
ROOT = Path(__file__).parents[2]
SHARED = Path("/shared")
"""Where the containers see the folder that they share."""


def docker(*arguments: str, check: bool = True) -> str:
    """What `docker` prints, of both its streams."""
    done = subprocess.run(
        ["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )
    assert not check or done.returncode == 0, f"docker {arguments[0]}: {done.stdout}"
    return done.stdout.strip()


def unavailable() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "no Docker engine answers"
    if os.geteuid() != 0:
        return "only root can give files to the image's user"
    image = find_image()
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
        return f"there is no image {image}: make images"
    return None


def find_image() -> str:
    """The image that `make images` built last; without its record, the tag."""
    record = ROOT / "build" / "images.json"
    return json.loads(record.read_text())["cpu"]["id"] if record.is_file() else "ava-moe:cpu"


@dataclass(frozen=True)
class Ended:
    """How a job has ended: its exit code, all that it printed, and how long after `since` it was."""

    code: int
    printed: str
    seconds: float


class Job:
    """The launcher of one TrainJob, running."""

    def __init__(self, name: str) -> None:
        self.name = name

    def printed(self) -> str:
        """All that it has printed until now."""
        return docker("logs", self.name)

    def wait(self, seconds: float) -> Ended:
        """Until it has ended.

        Raises:
            AssertionError: it still runs after so long.
        """
        started = time.monotonic()
        wait_for(lambda: docker("inspect", "-f", "{{.State.Running}}", self.name) == "false", seconds, self.printed)
        code = int(docker("inspect", "-f", "{{.State.ExitCode}}", self.name))
        return Ended(code, self.printed(), time.monotonic() - started)


class Cluster:
    """A network, and what runs in it; a context manager that leaves nothing behind.

    Args:
        folder: for keys, hostfiles and the shared folder; not there yet.

    Attributes:
        shared: the shared folder, as this side sees it.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"ava-test-{secrets.token_hex(4)}"
        self.folder, self.image = folder, find_image()
        self.shared = folder / "shared"
        self.keys = folder / "ssh"
        self._jobs = 0

    def __enter__(self) -> Cluster:
        self.shared.mkdir(parents=True)
        open_to_image(self.shared)
        self._make_keys()
        docker("network", "create", "--internal", self.name)  # there is no way out of it
        return self

    def __exit__(self, *_: object) -> None:
        for container in docker("ps", "-aq", "--filter", f"label={self.name}").split():
            docker("rm", "-f", container)
        docker("network", "rm", self.name, check=False)

    def start_node(self, number: int) -> str:
        """A machine that waits for the launcher; its host name."""
        host = f"{self.name}-node-0-{number}"
        docker("rm", "-f", host, check=False)  # the one before it, if there was one
        self._run(host, node_command(), {self.keys: SSH_FOLDER})
        wait_for(lambda: "listening" in docker("logs", host), START_SECONDS, lambda: docker("logs", host))
        return host

    def start_job(self, arguments: Sequence[str], nodes: Sequence[str]) -> Job:
        """`ava ARGUMENTS` on the launcher and `nodes`, with one process on each."""
        self._jobs += 1
        launcher = f"{self.name}-launcher-{self._jobs}"
        hostfile = self.folder / launcher / HOSTFILE.name
        hostfile.parent.mkdir()
        hostfile.write_text("".join(f"{host} slots=1\n" for host in (launcher, *nodes)))
        code = code_of(STEPS["train"]).digest
        command = job_command(arguments, nodes=1 + len(nodes), processes=1, code=code)
        self._run(launcher, command, {self.keys: SSH_FOLDER, hostfile.parent: HOSTFILE.parent})
        return Job(launcher)

    def kill(self, host: str) -> None:
        """SIGKILL for all that runs there, as when the machine's memory has run out."""
        docker("kill", host)

    def cut_off(self, host: str) -> None:
        """Take the network from a machine: nothing that it would still say arrives."""
        docker("network", "disconnect", self.name, host)

    def _run(self, host: str, command: Sequence[str], mounts: dict[Path, Path]) -> None:
        options = ["--network", self.name, "--name", host, "--hostname", host, "--label", self.name]
        options += ["--no-healthcheck", "--read-only", "--tmpfs", "/tmp:mode=1777", "--cap-drop", "ALL"]
        options += ["--security-opt", "no-new-privileges", "--user", f"{USER}:{GROUP}"]
        options += ["--volume", f"{self.shared}:{SHARED}"]
        for here, there in mounts.items():
            options += ["--volume", f"{here}:{there}:ro"]
        docker("run", "--detach", *options, self.image, *command)

    def _make_keys(self) -> None:
        """As the controller's secret: one pair, for the hosts and for whoever comes. Root's, and read by the group."""
        self.keys.mkdir()
        keygen = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-C", "", "-f", "/keys/id_rsa"]
        alone = ["--rm", "--network", "none", "--user", "0:0", "--volume", f"{self.keys}:/keys"]
        docker("run", *alone, self.image, *keygen)
        shutil.copyfile(self.keys / "id_rsa.pub", self.keys / "authorized_keys")
        (self.keys / "id_rsa").chmod(0o640)


def open_to_image(folder: Path) -> None:
    """Give a folder and all in it to the image's user."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, USER, GROUP)


def wait_for(condition: Callable[[], object], seconds: float, describe: Callable[[], str] = str) -> None:
    """Look until it is so.

    Raises:
        AssertionError: it isn't after so many seconds; with what `describe` gives.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {describe()}"
        time.sleep(0.1)
