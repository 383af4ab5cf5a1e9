"""Docker's engine: one that answers, one that isn't there, one that says nothing, and something else."""

import contextlib
import socket
import threading
import time

import pytest

from ava_core.diagnosis import services
from ava_core.diagnosis.services import check_docker

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"Version": "27.1.0"}'


@contextlib.contextmanager
def listening(family, address, answer):
    """A server that answers everybody with the same bytes; None: with nothing."""
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind(address)
    server.listen()
    taken = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                taken.append(connection)
                if answer is not None:
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()
    finally:
        server.close()
        for connection in taken:
            connection.close()


def only(findings):
    (finding,) = findings
    return finding


def test_an_engine_at_a_socket_answers(tmp_path):
    path = str(tmp_path / "docker.sock")
    with listening(socket.AF_UNIX, path, ANSWER):
        finding = only(check_docker({"DOCKER_HOST": f"unix://{path}"}))
    assert finding.line() == f"ok    docker: engine 27.1.0 at unix://{path}"


def test_no_engine_and_something_else_warn(tmp_path):
    gone = only(check_docker({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}))
    assert gone.status == "warn" and "No such file" in gone.value and "DOCKER_HOST" in gone.way_out
    strange = ANSWER.replace(b'{"Version": "27.1.0"}', b"<html>27.1.0.</html>.")
    with listening(socket.AF_INET, ("127.0.0.1", 0), strange) as (host, port):
        finding = only(check_docker({"DOCKER_HOST": f"tcp://{host}:{port}"}))
    assert finding.status == "warn" and "is no Docker engine" in finding.value


def test_a_silent_engine_is_waited_for_no_longer_than_it_may(monkeypatch):
    monkeypatch.setattr(services, "SECONDS", 0.2)
    with listening(socket.AF_INET, ("127.0.0.1", 0), None) as (host, port):
        began = time.monotonic()
        finding = only(check_docker({"DOCKER_HOST": f"tcp://{host}:{port}"}))
    assert finding.status == "warn" and "timed out" in finding.value and time.monotonic() - began < 1.5


def test_a_socket_that_may_not_be_used_names_the_group(monkeypatch):
    def refuse(address, encrypted):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(services, "_ask", refuse)
    assert "usermod -aG docker" in only(check_docker({})).way_out


@pytest.mark.parametrize("address", ["ssh://me@host", "nonsense", "tcp://"])
def test_an_address_that_is_not_understood_warns(address):
    assert only(check_docker({"DOCKER_HOST": address})).status == "warn"
