"""The model that is served; it is replaced by the new version when the registry's alias moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError
from ava_core.onnx.session import DecoderSession
from ava_core.runtime import manifest
from ava_core.serving.engine import Deliver, Engine

log = logging.getLogger(__name__)
DRAIN_CHECK_SECONDS = 1.0
"""Seconds between two checks whether the server ends, while a replaced engine finishes its requests."""


@dataclass(frozen=True)
class Source:
    """A model's folder and version.

    Attributes:
        version: the registered version; empty for a folder.
        folder: the quantised model's.
        created: when it was made, in seconds since 1970.
    """

    version: str
    folder: Path
    created: int


@dataclass(frozen=True)
class Served:
    """A model with a running engine."""

    name: str
    version: str
    engine: Engine
    tokenizer: Any
    created: int


class ServedModels:
    """Holds the engine of the newest version, and replaces it while requests are running.

    Args:
        name: what clients call the model.
        resolve: gives the present source; called again every `poll_seconds`, if that isn't 0.
        deliver: as `Engine` takes it.
        threads: CPU threads of the decoder; 0: as many as ONNX Runtime chooses.
        poll_seconds: seconds between two calls of `resolve`; 0: never again.
        drain_seconds: how long `close` waits for the poller. An engine that was exchanged finishes its requests however
            long they take: the server's own limit per request bounds that.
        settings: `slots`, `max_queue` and `chunk` of `Engine`.

    Raises:
        AvaError: the first model can't be resolved or loaded.
        IntegrityError: it is damaged.
    """

    def __init__(
        self,
        name: str,
        resolve: Callable[[], Source],
        deliver: Deliver,
        *,
        threads: int = 0,
        poll_seconds: float = 0.0,
        drain_seconds: float = 30.0,
        **settings: int,
    ) -> None:
        self.name, self._resolve, self._deliver = name, resolve, deliver
        self._threads, self._drain_seconds, self._settings = threads, drain_seconds, settings
        self._source = resolve()
        self._served = self._load(self._source)
        self._refused: str | None = None
        self._complaint = ""
        self._stop, self._exchange = threading.Event(), threading.Lock()
        self._poller = None
        if poll_seconds:
            self._poller = threading.Thread(target=self._poll, args=(poll_seconds,), name="ava-poll", daemon=True)
            self._poller.start()

    def current(self) -> Served:
        """The model that new requests go to."""
        return self._served

    def close(self, timeout: float) -> bool:
        """Finish running requests and end the engine; whether they finished within `timeout` seconds."""
        with self._exchange:
            self._stop.set()
            served = self._served
        done = served.engine.drain(timeout)
        served.engine.close()
        if self._poller is not None:
            self._poller.join(timeout=self._drain_seconds)
        return done

    def _load(self, source: Source) -> Served:
        manifest.read(source.folder)  # a folder without one is not served
        with manifest.verified(source.folder):
            tokenizer = load_tokenizer(source.folder)
            decoder = DecoderSession.load(source.folder, self._threads)
        engine = Engine(decoder, tokenizer, self._deliver, **self._settings)
        return Served(self.name, source.version, engine, tokenizer, source.created)

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.refresh()

    def refresh(self) -> bool:
        """Replace the engine if there is another version; whether it was replaced.

        Whatever is wrong with the registry or the new version, the present one goes on; a fault that lasts is logged
        once. A version that can't be loaded isn't tried again until the source gives another.
        """
        source: Source | None = None
        try:
            source = self._resolve()
            if source.version in (self._source.version, self._refused):
                return False
            served = self._load(source)
        except Exception as error:
            self._refused = source.version if source else self._refused
            self._complain(error)
            return False
        with self._exchange:
            if self._stop.is_set():
                served.engine.close()
                return False
            before, self._served, self._source = self._served, served, source
        self._refused, self._complaint = None, ""
        log.info("serve: %s %s took over from %s", self.name, source.version, before.version)
        while not before.engine.drain(DRAIN_CHECK_SECONDS) and not self._stop.is_set():
            pass
        before.engine.close()
        return True

    def _complain(self, error: Exception) -> None:
        if str(error) == self._complaint:
            return
        self._complaint = str(error)
        traceback = None if isinstance(error, AvaError) else error
        log.warning("serve: %s goes on: %s", self._source.version, error, exc_info=traceback)


def folder_source(folder: Path) -> Callable[[], Source]:
    """A source that never changes: an output folder of `ava quantize`."""
    try:
        created = int((folder / manifest.NAME).stat().st_mtime)
    except OSError:
        created = 0  # loading it will say what is missing
    return lambda: Source("", folder, created)
