"""Running the application with uvicorn: from a model's address to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from ava_core.errors import AvaError
from ava_core.serving.http.app import Limits, create_app
from ava_core.serving.models import ServedModels, folder_source, registry_source
from ava_core.serving.streams import Bridge

log = logging.getLogger(__name__)
REGISTRY_SCHEME = "models:/"
CACHE = Path(".ava/models")
KEEP_ALIVE_SECONDS = 15
MAX_CONNECTIONS = 1024


class _Server(uvicorn.Server):
    """Ends by returning, where uvicorn would raise the signal again once it has shut down."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C begin the end; a second Ctrl-C doesn't wait for running requests."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)


def run(
    *,
    model: str,
    weights: str,
    name: str | None,
    host: str,
    port: int,
    keys: Sequence[str],
    chat_template: str | None,
    limits: Limits,
    threads: int,
    drain_seconds: float,
    poll_seconds: float,
    slots: int,
    max_queue: int,
) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests are finished first. Arguments: see `ava serve --help`.

    Raises:
        AvaError: the model can't be had, or the address is taken.
        IntegrityError: the model is damaged.
    """
    started = time.perf_counter()
    registered = model.startswith(REGISTRY_SCHEME)
    if registered:
        from ava_core.tracking import tracking_uri

        look = registry_source(model, weights, tracking_uri(), CACHE)
    else:
        look = folder_source(Path(model))
    called = name or (
        model.removeprefix(REGISTRY_SCHEME).split("@")[0].split("/")[0] if registered else Path(model).name
    )

    async def serve() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        with _listen(host, port) as listener:
            models = ServedModels(
                called,
                look,
                bridge.deliver,
                threads=threads,
                poll_seconds=poll_seconds if registered else 0.0,
                drain_seconds=drain_seconds,
                slots=slots,
                max_queue=max_queue,
            )
            app = create_app(models, limits=limits, keys=keys, chat_template=chat_template)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(drain_seconds)),
                limit_concurrency=MAX_CONNECTIONS,
            )
            address, bound = listener.getsockname()[:2]
            version = models.current().version
            print(
                f"ava serve: {called}{f' version {version}' if version else ''} on http://{address}:{bound} after"
                f" {time.perf_counter() - started:.1f} s",
                flush=True,
            )
            try:
                await _Server(config).serve(sockets=[listener])
            finally:
                models.close(timeout=1.0)

    asyncio.run(serve())


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is found before the model is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise AvaError(
            f"{host}:{port}: can't be listened on ({error.strerror or error}): give another --port"
        ) from error
    return listener
