"""The model that is being served, and its successor when the registry's alias moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.errors import AvaError
from ava_core.generation.prompts import load_tokenizer
from ava_core.quantization.session import DecoderSession
from ava_core.runtime import manifest
from ava_core.serving.engine import Deliver, Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model is to be had.

    Attributes:
        version: what changes when the model does; empty for a folder.
        folder: the quantised model's.
    """

    version: str
    folder: Path


@dataclass(frozen=True)
class Served:
    """A model at work."""

    name: str
    version: str
    engine: Engine
    tokenizer: Any


class ServedModels:
    """Holds the engine of the newest version and exchanges it while requests are running.

    Args:
        name: what clients call the model.
        look: the present source; called again every `poll_seconds`, if that isn't 0.
        deliver: as `Engine` takes it.
        threads: CPU threads of the decoder; 0: as many as ONNX Runtime chooses.
        poll_seconds: between two looks.
        drain_seconds: how long an engine that was exchanged may take for its last requests.
        settings: of `Engine`.

    Raises:
        AvaError: the first model can't be had.
        IntegrityError: it is damaged.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], Source],
        deliver: Deliver,
        *,
        threads: int = 0,
        poll_seconds: float = 0.0,
        drain_seconds: float = 30.0,
        **settings: int,
    ) -> None:
        self.name, self._look, self._deliver = name, look, deliver
        self._threads, self._drain_seconds, self._settings = threads, drain_seconds, settings
        self._source = look()
        self._served = self._load(self._source)
        self._refused = ""
        self._stop = threading.Event()
        self._poller = None
        if poll_seconds:
            self._poller = threading.Thread(target=self._poll, args=(poll_seconds,), name="ava-poll", daemon=True)
            self._poller.start()

    def current(self) -> Served:
        """The model that new requests go to."""
        return self._served

    def close(self, timeout: float) -> bool:
        """Let running requests finish and end; whether they did in time (seconds)."""
        self._stop.set()
        done = self._served.engine.drain(timeout)
        self._served.engine.close()
        if self._poller is not None:
            self._poller.join(timeout=self._drain_seconds)
        return done

    def _load(self, source: Source) -> Served:
        manifest.verify(source.folder)
        tokenizer = load_tokenizer(source.folder)
        decoder = DecoderSession.load(source.folder, self._threads)
        engine = Engine(decoder, tokenizer, self._deliver, **self._settings)
        return Served(self.name, source.version, engine, tokenizer)

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.refresh()

    def refresh(self) -> bool:
        """Look for another version and exchange the engine if there is one; whether that happened.

        Whatever is wrong with the registry or the new version, the present one goes on.
        """
        try:
            source = self._look()
            if source.version in (self._source.version, self._refused):
                return False
            served = self._load(source)
        except AvaError as error:
            log.warning("serve: %s goes on: %s", self._source.version, error)
            return False
        except Exception:
            log.exception("serve: %s goes on: the newest version can't be loaded", self._source.version)
            return False
        before, self._served, self._source = self._served, served, source
        log.info("serve: %s %s took over from %s", self.name, source.version, before.version)
        before.engine.drain(self._drain_seconds)
        before.engine.close()
        return True


def folder_source(folder: Path) -> Callable[[], Source]:
    """A source that never changes: an output folder of `ava quantize`."""
    return lambda: Source("", folder)
