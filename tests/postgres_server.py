"""A real PostgreSQL on loopback, for tests that need one."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def require_postgres() -> Path:
    """The folder of its programs; the test is skipped where it isn't installed."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
    if binaries is None:
        pytest.skip("needs PostgreSQL (Debian: apt install postgresql)")
    pytest.importorskip("psycopg2")
    return binaries


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(condition, process, log: Path, seconds: float = 300.0):
    until = time.monotonic() + seconds
    while True:
        try:
            return condition()
        except Exception:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)


def end(process, number=signal.SIGTERM):
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.wait(60)


class Postgres:
    """Debian's PostgreSQL in a folder of its own, on loopback, as a user that isn't root."""

    def __init__(self, binaries: Path, folder: Path, password: str, user: str) -> None:
        self.binaries, self.folder, self.password, self.port = binaries, folder, password, free_port()
        self.user = user
        self.account = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}

    def make(self) -> None:
        file = self.folder / "password"
        file.write_text(self.password)
        if self.account:
            for path in (self.folder, file):
                shutil.chown(path, "postgres", "postgres")
        command = [
            self.binaries / "initdb",
            "--auth=scram-sha-256",
            f"--username={self.user}",
            "--encoding=UTF8",
            "--locale=C",
        ]
        command += [f"--pwfile={file}", "-D", self.folder / "data"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self.account)

    def start(self) -> None:
        log = self.folder / "log"
        command = [self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        with log.open("a") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True, **self.account
            )
        wait_for(lambda: self.connect("postgres").close(), self.process, log)

    def connect(self, database: str):
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password, dbname=database, connect_timeout=5
        )

    def create(self, database: str) -> None:
        connection = self.connect("postgres")
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {database}")
        connection.close()

    def stop(self) -> None:
        end(self.process, signal.SIGINT)
