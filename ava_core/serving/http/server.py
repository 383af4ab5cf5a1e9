"""Running the application with uvicorn, from loading the model to a graceful shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from ava_core.errors import AvaError
from ava_core.retrieval.retriever import Retriever
from ava_core.serving.http.app import Access, create_app
from ava_core.serving.http.connections import BACKLOG, BoundedProtocol, DrainingServer, raise_open_files
from ava_core.serving.http.limits import Limits
from ava_core.serving.models import ServedModels, Source
from ava_core.serving.streams import Bridge

log = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 15
CLOSING_SECONDS = 1
"""For connections to close when no request is running any more."""


def run(
    *,
    resolve: Callable[[], Source],
    name: str,
    host: str,
    port: int,
    access: Access,
    chat_template: str | None,
    log_requests: bool,
    limits: Limits,
    threads: int,
    drain_seconds: float,
    poll_seconds: float,
    slots: int,
    max_queue: int,
    started: float,
    adapters: Mapping[str, Path] | None = None,
    retriever: Retriever | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests are finished first.

    `resolve` gives the model, and is called again every `poll_seconds` if that isn't 0. `host` is added to the hosts of
    `access`. Requests may look things up in the index of `retriever`. `started` is the `time.perf_counter` at which the
    program started; for the others see `ava serve --help`.

    Raises:
        AvaError: the model can't be resolved or loaded, the address is taken, or requests were cut off at the end.
        IntegrityError: the model is damaged.
    """

    raise_open_files()
    # Imported objects are taken out of garbage collection: a full one stalled all streams for hundreds of milliseconds.
    gc.collect()
    gc.freeze()

    async def serve() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        with _listen(host, port) as listener:
            models = ServedModels(
                name,
                resolve,
                bridge.deliver,
                threads=threads,
                poll_seconds=poll_seconds,
                drain_seconds=drain_seconds,
                adapters=adapters,
                slots=slots,
                max_queue=max_queue,
            )
            address, bound = listener.getsockname()[:2]
            app = create_app(
                models,
                limits=limits,
                access=_reached_by(access, host, address),
                chat_template=chat_template,
                log_requests=log_requests,
                retriever=retriever,
            )
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                proxy_headers=False,  # the log has the peer's address, not X-Forwarded-For
                backlog=BACKLOG,
            )
            version = models.current().version

            def ready() -> None:
                shown = f"[{address}]" if ":" in address else address
                whole = f"{name} version {version}" if version else name
                print(
                    f"ava serve: {', '.join((whole, *(adapters or ())))} on http://{shown}:{bound} after"
                    f" {time.perf_counter() - started:.1f} s",
                    flush=True,
                )

            server = DrainingServer(config, ready, app.state.refuse, drain_seconds)
            try:
                await server.serve(sockets=[listener])
            finally:
                models.close(timeout=0.0)
            if server.cut_off:
                raise AvaError(
                    f"{server.cut_off} requests weren't done and were cut off: give them a longer --drain-seconds than"
                    f" {drain_seconds:g}"
                )

    asyncio.run(serve())


def _reached_by(access: Access, host: str, address: str) -> Access:
    """Access with the address that is listened on; warns if it is reachable from other machines without a key."""
    beyond = not ip_address(address).is_loopback
    if beyond and not access.keys:
        log.warning(
            "serve: %s is reached from other machines and there are no API keys: whoever reaches it is served:"
            " give --api-key-file or AVA_API_KEYS",
            address,
        )
    return replace(access, hosts=[*access.hosts, host], addresses=beyond)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port in use is an error before the model is loaded."""
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
