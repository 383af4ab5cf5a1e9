"""The model that is served; it is replaced by the new version when the registry's alias moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError, IntegrityError, first_line
from ava_core.generation.answers import listed_ends
from ava_core.onnx.session import DecoderSession
from ava_core.onnx.shape import GRAPH_FILE
from ava_core.runtime import manifest
from ava_core.serving.engine import Deliver, Engine

log = logging.getLogger(__name__)
GENERATION_CONFIG = "generation_config.json"
TRAINING = "training.json"
"""What a model folder has, and no other."""
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
    """A model with a running engine.

    Attributes:
        name: what clients call it.
        version: the registered one; empty for a folder.
        engine: that answers.
        tokenizer: of the model.
        created: as `Source` has it.
        ends: tokens that end an answer in a chat, beside that of the template: all ends of its generation_config.json.
    """

    name: str
    version: str
    engine: Engine
    tokenizer: Any
    created: int
    ends: tuple[int, ...] = ()


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
        adapters: folders of adapters of that model, by the names that clients call the model with them: each becomes a
            model of its own, with an engine. Only for a source that never changes.
        settings: `slots`, `max_queue` and `chunk` of `Engine`.

    Raises:
        AvaError: the first model, or an adapter of it, can't be resolved or loaded.
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
        adapters: Mapping[str, Path] | None = None,
        **settings: int,
    ) -> None:
        self.name, self._resolve, self._deliver = name, resolve, deliver
        self._threads, self._drain_seconds, self._settings = threads, drain_seconds, settings
        self._source = resolve()
        self._served = self._load(self._source)
        self._adapted: tuple[Served, ...] = ()
        for called, folder in (adapters or {}).items():
            self._adapted += (self._load_adapter(called, folder),)
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

    def all(self) -> tuple[Served, ...]:
        """The model, and that with each adapter."""
        return self._served, *self._adapted

    def close(self, timeout: float) -> bool:
        """Finish running requests and end the engines; whether they finished within `timeout` seconds."""
        with self._exchange:
            self._stop.set()
            everything = self.all()
        end = time.monotonic() + timeout
        finished = [served.engine.drain(max(0.0, end - time.monotonic())) for served in everything]
        for served in everything:
            served.engine.close()
        if self._poller is not None:
            self._poller.join(timeout=self._drain_seconds)
        return all(finished)

    def _load(self, source: Source) -> Served:
        manifest.read(source.folder)  # a folder without one is not served
        with manifest.verified(source.folder):
            tokenizer = load_tokenizer(source.folder)
            decoder = load_decoder(source.folder, self._threads)
            ends = _listed_ends(source.folder)
        engine = Engine(decoder, tokenizer, self._deliver, **self._settings)
        return Served(self.name, source.version, engine, tokenizer, source.created, ends)

    def _load_adapter(self, name: str, folder: Path) -> Served:
        """The served model with an adapter: its own decoder, which shares no memory with the others."""
        from ava_core.serving.float_models import adapted_decoder

        decoder = adapted_decoder(self._source.folder, folder, self._threads)
        engine = Engine(decoder, self._served.tokenizer, self._deliver, **self._settings)
        return Served(name, "", engine, self._served.tokenizer, self._source.created, self._served.ends)

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


def load_decoder(folder: Path, threads: int) -> DecoderSession:
    """The decoder in an output folder of `ava quantize`, or one of a model folder's float weights."""
    if (folder / GRAPH_FILE).is_file() or not (folder / TRAINING).is_file():
        return DecoderSession.load(folder, threads)
    from ava_core.serving.float_models import float_decoder

    return float_decoder(folder, threads)


def _listed_ends(folder: Path) -> tuple[int, ...]:
    """Of the folder's generation_config.json, if it has one.

    Raises:
        IntegrityError: it can't be read.
    """
    if not (folder / GENERATION_CONFIG).is_file():
        return ()
    try:
        return listed_ends(GenerationConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{folder / GENERATION_CONFIG}: can't be read ({first_line(error)}): make the folder again"
        ) from error


def folder_source(folder: Path) -> Callable[[], Source]:
    """A source that never changes: an output folder of `ava quantize`, or a model folder."""
    try:
        created = int((folder / manifest.NAME).stat().st_mtime)
    except OSError:
        created = 0  # loading it will say what is missing
    return lambda: Source("", folder, created)
