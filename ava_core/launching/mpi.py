"""What the launcher of the TrainJob runs: `mpirun`, with one `ava train` per process.

    python -m ava_core.launching.mpi --nodes 2 --processes 4 -- train --params-yaml ... --output ...

The controller of Kubeflow Trainer gives the names of all nodes in a hostfile and a pair of keys in an ssh folder. Only
here is known which of the nodes this is and which of its ports is free, for the ranks' rendezvous (MASTER_ADDR and
MASTER_PORT): it puts itself first, so that rank 0 runs here, where its log is followed, and becomes `mpirun` by exec,
which then gets all signals.

Options of Open MPI 4.1, the one of Debian 12.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ava_core.errors import AvaError, ConfigError

HOSTFILE = Path("/etc/mpi/hostfile")
"""Where the controller mounts the hostfile."""
SSH_FOLDER = Path("/home/ava/.ssh")
"""Where the controller mounts `id_rsa`, `id_rsa.pub` and `authorized_keys`; `runtime` says so to it."""
SSH_PORT = 2222
"""The nodes' sshd runs without being root, so its port is above 1023."""
FORWARDED = (
    *("AVA_", "DS_", "GLOO_", "GOMP_", "HF_", "NCCL_", "OMP_WAIT_", "PYTHON", "TORCH_"),
    *("LANG", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "PATH"),
)
"""Beginnings of names of the variables that ranks on other nodes get: sshd passes on none of its container's."""
SILENCE_SECONDS = 60
"""After so long without an answer a node counts as gone: 30 s idle, then 3 probes 10 s apart."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Replace this process by `mpirun`; exit with a line on standard error, 1 or 2, where that can't be."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.secrets:
            os.environ.update(read_secrets(options.secrets))
        _require_code(options.program[0], options.code)
        if shutil.which("mpirun") is None:
            raise AvaError("mpirun: not found: the image needs Open MPI and an ssh client")
        hosts, port = order_hosts(read_hosts(options.hostfile), options.nodes)
        folder = Path(tempfile.mkdtemp(prefix="ava-mpi-"))
        (folder / "hostfile").write_text("".join(f"{host} slots={options.processes}\n" for host in hosts))
        ssh = write_ssh_config(folder, options.ssh)
        os.environ |= {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(port)}
        command = mpirun_command(
            hostfile=folder / "hostfile",
            ssh_config=ssh,
            nodes=options.nodes,
            processes=options.processes,
            forwarded=forwarded(os.environ),
            program=[sys.executable, "-m", "ava_core.cli.main", *options.program],
        )
        sys.stdout.flush()
        os.execvp(command[0], command)  # noqa: S606 - a list, no shell
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}", AvaError.exit_code)
    except AvaError as error:
        _end(str(error), error.exit_code)


def read_hosts(path: Path) -> list[str]:
    """Names of the nodes in a hostfile, in its order.

    Raises:
        ConfigError: the file is missing or empty.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read: {error.strerror}: this must run in the launcher of a TrainJob"
        ) from error
    hosts = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not hosts:
        raise ConfigError(f"{path}: names no node")
    return list(dict.fromkeys(hosts))


def order_hosts(hosts: Sequence[str], nodes: int) -> tuple[list[str], int]:
    """This node first, then as many others as are wanted; and a port of this node that is free.

    The hostfile may name one more than wanted: Kubeflow Trainer starts a node beside the launcher even for one node.

    Raises:
        AvaError: this node isn't among them, or they are too few.
    """
    for host in hosts:
        try:
            with socket.socket() as probe:
                probe.bind((host, 0))  # succeeds only for an address of this node
                port = probe.getsockname()[1]
        except OSError:
            continue
        ordered = [host, *(other for other in hosts if other != host)][:nodes]
        if len(ordered) < nodes:
            raise AvaError(
                f"hostfile: has {len(hosts)} machines, but {nodes} are wanted: look at the runtime's mlPolicy"
            )
        return ordered, port
    raise AvaError(
        f"hostfile: none of {', '.join(hosts)} is this machine: the runtime needs mlPolicy.mpi.runLauncherAsNode: true"
    )


def write_ssh_config(folder: Path, keys: Path, port: int = SSH_PORT) -> Path:
    """Write a configuration of the ssh client under which it accepts only nodes whose host key is the job's own key.

    The nodes use that pair as their host key, so no key is trusted on first use.
    """
    known = folder / "known_hosts"
    known.write_text(f"* {(keys / 'id_rsa.pub').read_text().strip()}\n")
    settings = {
        "Port": port,
        "IdentityFile": keys / "id_rsa",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": known,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ConnectionAttempts": 30,  # one a second: the nodes may still be starting
        "ServerAliveInterval": SILENCE_SECONDS // 4,
        "ServerAliveCountMax": 3,
    }
    path = folder / "ssh_config"
    path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return path


def mpirun_command(
    *, hostfile: Path, ssh_config: Path, nodes: int, processes: int, forwarded: Iterable[str], program: Sequence[str]
) -> list[str]:
    """`mpirun` with `processes` ranks on each node in the order of the hostfile, so that rank 0 is on the first."""
    parameters = {
        "plm_rsh_agent": f"ssh -F {ssh_config}",
        "oob_tcp_keepalive_time": str(SILENCE_SECONDS // 2),
        "oob_tcp_keepalive_intvl": str(SILENCE_SECONDS // 6),
        "oob_tcp_keepalive_probes": "3",
    }
    command = ["mpirun", "--hostfile", str(hostfile), "-np", str(nodes * processes)]
    # Not bound to cores: each rank computes with several threads, and Open MPI would give it one core.
    command += ["--map-by", f"ppr:{processes}:node", "--bind-to", "none"]
    for name, value in parameters.items():
        command += ["--mca", name, value]
    for name in ("MASTER_ADDR", "MASTER_PORT", *forwarded):
        command += ["-x", name]  # by name: a value on the command line could be read by anyone
    return [*command, *program]


def forwarded(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that ranks on other nodes get too."""
    return sorted(name for name in environment if name.startswith(FORWARDED))


def read_secrets(folder: Path) -> dict[str, str]:
    """Variables from a mounted Kubernetes Secret: one file each, named as the variable.

    Raises:
        ConfigError: the folder isn't there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder: the secret isn't mounted")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: path.read_text().strip() for path in files}


def _require_code(step: str, expected: str | None) -> None:
    """The same code here as where the job was started, or the work could not be found by its key."""
    if expected is None:
        return
    from ava_core.runtime.code import code_of
    from ava_core.steps.table import STEPS

    if code_of(STEPS[step]).digest != expected:
        raise ConfigError(
            "the image of the runtime holds other code than the one that started this job: apply"
            " `python -m ava_core.launching.runtime --image IMAGE` with the step's image"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ava_core.launching.mpi", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help="machines that take part, this one included")
    parser.add_argument("--processes", type=int, required=True, help="ranks on each of them")
    parser.add_argument(
        "--hostfile",
        type=Path,
        default=HOSTFILE,
        help="MPI hostfile with the names of all nodes (default: %(default)s)",
    )
    parser.add_argument(
        "--ssh",
        type=Path,
        default=SSH_FOLDER,
        help="folder with id_rsa, id_rsa.pub and authorized_keys of the job (default: %(default)s)",
    )
    parser.add_argument("--secrets", type=Path, help="mounted Secret: folder with a file for each environment variable")
    parser.add_argument(
        "--code", help="digest of the training's code where the job was started; this image's must equal it"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help="arguments of `ava`, after --")
    options = parser.parse_args(arguments)
    options.program = [argument for index, argument in enumerate(options.program) if index or argument != "--"]
    if not options.program or min(options.nodes, options.processes) < 1:
        parser.error("give the arguments of `ava` after --, and at least 1 node and process")
    return options


def _end(message: str, code: int) -> None:
    print(f"ava: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
