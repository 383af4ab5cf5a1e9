"""A proxy in front of the real MLflow server that fails as a test wants it to."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Hook = Callable[[str, str], int | None]
"""Called with method and path; a status code is answered in the server's place."""


class Proxy:
    """Forwards requests; use it as a context manager.

    Args:
        target: address of the real server.
        before: asked before a request is forwarded.
        after: told once the server has done its part, before the client hears of it.
    """

    def __init__(self, target: str, before: Hook | None = None, after: Hook | None = None) -> None:
        self.target, self.before, self.after = urlsplit(target), before, after
        self.seen: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                proxy._forward(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _forward(self, handler: BaseHTTPRequestHandler) -> None:
        body = self._body(handler)
        self.seen.append(f"{handler.command} {handler.path}")
        status = self.before(handler.command, handler.path) if self.before else None
        if status is not None:
            self._answer(handler, status, b"as the test wants it", "text/plain")
            return
        connection = http.client.HTTPConnection(self.target.hostname, self.target.port, timeout=250)
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in ("host", "transfer-encoding")}
        connection.request(handler.command, handler.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        status = self.after(handler.command, handler.path) if self.after else None
        self._answer(handler, status or answer.status, content, answer.getheader("Content-Type", ""))

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        body = b""
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, content: bytes, kind: str) -> None:
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            handler.close_connection = True  # the client was killed meanwhile
