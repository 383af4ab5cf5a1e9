"""The local MLflow server: found, or started on this machine's loopback address.

Usage: python -m pipelines.mlflow_server ensure [--export] | status | stop

Everything it keeps lies under `.ava/mlflow/` of the current folder (in a temporary workspace of DVC's: of the checkout
that it was made from): `mlflow.db` (SQLite), `artifacts/`, `server.log`, and `server.json` with the address and the
process of the server that runs. It outlives the command that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ava_core.checkout import checkout
from ava_core.errors import AvaError
from ava_core.redaction import redact, redact_address
from ava_core.server_address import WEB_SCHEMES, require_server_address
from pipelines.processes import Process

FOLDER = checkout() / ".ava/mlflow"
ADDRESS_VARIABLES = ("AVA_TRACKING_URI", "MLFLOW_TRACKING_URI")
START_SECONDS = 180.0
PROBE_SECONDS = 5.0
STOP_SECONDS = 10.0
FREE_SECONDS = 3.0
# The runner of background jobs is five more processes and two more seconds for features that Ava doesn't use; usage
# statistics would leave the machine.
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
# Meant for clients; a server that inherited them would track into another one.
CLIENT_VARIABLES = (*ADDRESS_VARIABLES, "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")


@dataclass(frozen=True)
class Server(Process):
    """A server of ours: its process, the leader of its own session.

    Attributes:
        address: `http://127.0.0.1:PORT`.
        folder: where its database lies.
    """

    address: str
    folder: str = ""

    @property
    def answers(self) -> bool:
        """Whether it serves requests."""
        return self.running and _probe(self.address) is None


def ensure(folder: Path = FOLDER, environment: Mapping[str, str] | None = None) -> str:
    """The address of a tracking server that answers: the one the environment names, ours, or a new one of ours.

    Args:
        folder: where our server keeps everything.
        environment: os.environ by default.

    Raises:
        AvaError: the server that the environment names doesn't answer, or ours doesn't start.
        ConfigError: the environment names something that is no address.
    """
    environment = os.environ if environment is None else environment
    for name in ADDRESS_VARIABLES:
        if environment.get(name, "").strip():
            return _given(name, environment[name].strip())
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        server = read(folder)
        if server is not None and server.answers and server.folder == str(folder):
            return server.address
        if server is not None and server.running:
            why = "no longer answers" if server.folder == str(folder) else f"was started in {server.folder}"
            _say(f"mlflow: {server.address} {why}: starting it again")
            server.end_group(STOP_SECONDS)
        return _start(folder, environment).address


def read(folder: Path = FOLDER) -> Server | None:
    """The server that `server.json` names, running or not; None if it belongs to a folder that this is a copy of."""
    try:
        server = Server(**json.loads((folder / "server.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return None if server.running and not _works_in(folder, server.pid) else server


def stop(folder: Path = FOLDER) -> bool:
    """End our server; False if none runs."""
    server = read(folder)
    if server is None or not server.running:
        return False
    server.end_group(STOP_SECONDS)
    (folder / "server.json").unlink(missing_ok=True)
    return True


def _given(name: str, uri: str) -> str:
    """An address from the environment, once it answers. Stores without a server (sqlite:, ...) are MLflow's to open."""
    if urlsplit(require_server_address(name, uri)).scheme not in WEB_SCHEMES:
        return uri
    fault = _probe(uri)
    if fault is not None:
        raise AvaError(
            f"{name} = {redact_address(uri)}: {fault}: start that server, or unset {name} to use a local one"
        )
    return uri


def _works_in(folder: Path, pid: int) -> bool:
    """Whether this folder is a process's working directory; that stays true when the folder is moved."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False


def _probe(address: str) -> str | None:
    """Why the server at `address` can't be used; None if it answers."""
    parts = urlsplit(address)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")
    request = urllib.request.Request(plain.geturl().rstrip("/") + "/health")  # noqa: S310 - http(s), checked by callers
    # A proxy is never asked for a local address.
    local = plain.hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(request, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # Refusing us (401) is the client's business: it may have credentials that we don't send here.
        return None if error.code == 401 else f"answers with HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"doesn't answer ({getattr(reason, 'strerror', None) or reason})"


def _start(folder: Path, environment: Mapping[str, str]) -> Server:
    port = _free_port(_last_port(folder))
    address = f"http://127.0.0.1:{port}"
    new = not (folder / "mlflow.db").exists()
    _say(f"mlflow: starting a server on {address}" + (" and making its database (5 to 25 s)" if new else ""))
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Relative to the server's folder: in an address, a `?`, `#` or `%` of the folder's own name would mean something.
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
    inherited = {name: value for name, value in environment.items() if name not in CLIENT_VARIABLES}
    log_file = folder / "server.log"
    with log_file.open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **SERVER_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(**asdict(Process.of(process.pid)), address=address, folder=str(folder))
    (folder / "server.json").write_text(json.dumps(asdict(server)) + "\n")
    try:
        _wait(process, server, log_file)
    except BaseException:
        server.end_group(STOP_SECONDS)
        (folder / "server.json").unlink(missing_ok=True)
        if new:  # half made, it would keep every later server from starting
            (folder / "mlflow.db").unlink(missing_ok=True)
        raise
    return server


def _wait(process: subprocess.Popen[bytes], server: Server, log_file: Path) -> None:
    started = shown = time.monotonic()
    while _probe(server.address) is not None:
        now = time.monotonic()
        if process.poll() is not None:
            raise AvaError(
                f"mlflow: the server ended with code {process.returncode}: {_last_line(log_file)} (see {log_file})"
            )
        if now - started > START_SECONDS:
            raise AvaError(f"mlflow: the server doesn't answer after {START_SECONDS:.0f} s: see {log_file}")
        if now - shown >= 10:
            _say(f"mlflow: still starting ({now - started:.0f} s)")
            shown = now
        time.sleep(0.1)
    _say(f"mlflow: {server.address} answers after {time.monotonic() - started:.1f} s")


def _free_port(wanted: int = 0) -> int:
    """The wanted port if it is free or soon will be, as a killed server's workers live on a little; else another."""
    deadline = time.monotonic() + FREE_SECONDS
    while wanted and time.monotonic() < deadline:
        if (port := _bindable(wanted)) is not None:
            return port
        time.sleep(0.1)
    port = _bindable(0)
    assert port is not None, "the kernel has a free port"
    return port


def _bindable(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections to a killed server may still linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return None
        return probe.getsockname()[1]


def _last_port(folder: Path) -> int:
    """The port at which running pipelines and open pages know the server of this folder; 0 if it had none."""
    server = read(folder)
    try:
        return (urlsplit(server.address).port or 0) if server and server.folder == str(folder) else 0
    except ValueError:
        return 0


def _last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks for a server and starts one."""
    with (folder / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(redact(line), file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line; exits 0, 1 (no server) or 2 (wrong address)."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.mlflow_server", description="The local MLflow server.")
    commands = parser.add_subparsers(dest="command", required=True)
    ensuring = commands.add_parser("ensure", help="start it if none answers, and print its address")
    ensuring.add_argument(
        "--export", action="store_true", help="print `export AVA_TRACKING_URI=ADDRESS`, for a shell's eval"
    )
    commands.add_parser("status", help="print the address of the server that runs; exit 1 if none does")
    commands.add_parser("stop", help="end the server that ensure started")
    arguments = parser.parse_args()
    try:
        if arguments.command == "ensure":
            address = ensure()
            print(f"export AVA_TRACKING_URI={shlex.quote(address)}" if arguments.export else address)
        elif arguments.command == "stop":
            _say("mlflow: stopped" if stop() else "mlflow: no server of ours runs here")
        else:
            server = read()
            if server is None or not server.answers:
                raise AvaError(
                    "mlflow: no server of ours runs here: `python -m pipelines.mlflow_server ensure` starts one"
                )
            print(server.address)
    except AvaError as error:
        _say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
