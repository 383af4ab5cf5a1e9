"""A Kubeflow Pipelines server for tests, in this process: it keeps what it is told and can be told to fail.

Every request and every reply is held against the OpenAPI description (see `kfp_api`); what isn't allowed is refused
with 400, and kept in `violations`, which the fixture wants to be empty.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from tests.pipelines.kfp_api import Call, Description, NotAllowed
from tests.pipelines.kfp_state import Refused, State

REASONS = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
"""The code of google.rpc for an HTTP status."""


@dataclass
class Fault:
    """What goes wrong with the next calls of an operation.

    Attributes:
        operation: the description's operationId.
        status: answered instead of doing it.
        drop: the connection is closed "before" or "after" it is done.
        delay: seconds before it is done.
        delay_answer: seconds between doing it and the answer.
        retry_after: value of the header of this name.
        page: answered with 200 as HTML instead of doing it.
        location: answered with 302 instead of doing it.
        barrier: waited at before it is done, so that calls of several clients overlap.
        times: how many calls.
    """

    operation: str
    status: int = 0
    drop: str = ""
    delay: float = 0.0
    delay_answer: float = 0.0
    retry_after: str = ""
    page: str = ""
    location: str = ""
    barrier: threading.Barrier | None = None
    times: int = 1


class KfpServer:
    """The server; `address` is where it listens.

    Attributes:
        token: what a request must bring, None if anybody may ask.
        state: what was made on it.
        faults: to come.
        calls: what was asked, in order, also what failed on purpose.
        violations: what the description doesn't allow.
    """

    def __init__(self, description: Description, certificate: tuple[str, str] | None = None) -> None:
        self.description = description
        self.token: str | None = None
        self.state = State()
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self._lock = threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, ssl_context=certificate, request_handler=_QuietHandler
        )
        scheme, name = ("https", "localhost") if certificate else ("http", "127.0.0.1")
        self.address = f"{scheme}://{name}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def fail(self, operation: str, **what: Any) -> None:
        """Have the next call of an operation fail; see `Fault`."""
        assert operation in self.description.operation_ids()
        self.faults.append(Fault(operation, **what))

    def count(self, operation: str) -> int:
        """How often an operation was called."""
        return sum(call.operation == operation for call in self.calls)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        try:
            response = self._respond(request)
        except NotAllowed as violation:
            self.violations.append(str(violation))
            response = _reply(400, _status(400, str(violation)))
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        call = self.description.read(request)
        if call is None:
            return Response("404 page not found", 404, content_type="text/plain")
        with self._lock:
            self.calls.append(call)
            fault = self._take_fault(call.operation)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._checked(call, 401, _status(401, "the token isn't valid"))
        time.sleep(fault.delay)
        if fault.barrier is not None:
            fault.barrier.wait(timeout=250)
        if fault.drop == "before":
            _drop(request)
        if fault.page:
            return Response(fault.page, 200, content_type="text/html; charset=utf-8")
        if fault.location:
            return Response("", 302, headers={"Location": fault.location})
        if fault.status:
            refusal = self._checked(call, fault.status, _status(fault.status, "told to\nfail"))
            if fault.retry_after:
                refusal.headers["Retry-After"] = fault.retry_after
            return refusal
        response = self._carry_out(call)
        time.sleep(fault.delay_answer)
        if fault.drop == "after":
            _drop(request)
        return response

    def _carry_out(self, call: Call) -> Response:
        try:
            with self._lock:
                value = self.state.carry_out(call)
        except Refused as refusal:
            return self._checked(call, refusal.status, _status(refusal.status, str(refusal)))
        return self._checked(call, 200, value)

    def _checked(self, call: Call, status: int, value: Any) -> Response:
        self.description.check_reply(call.operation, status, value)
        return _reply(status, value)

    def _take_fault(self, operation: str) -> Fault:
        for fault in self.faults:
            if fault.operation == operation and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault(operation)


@contextmanager
def serving(description: Description, certificate: tuple[str, str] | None = None) -> Iterator[KfpServer]:
    """A server while the block runs; at its end nothing may have been sent that the description doesn't allow."""
    server = KfpServer(description, certificate)
    try:
        yield server
    finally:
        server.close()
    assert server.violations == []


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing: pytest would show every request."""


def _drop(request: Request) -> None:
    request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("dropped on purpose")


def _reply(status: int, value: Any) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


def _status(status: int, message: str) -> dict[str, Any]:
    return {"code": REASONS.get(status, 2), "message": message}
