"""Continuous batching with chunked prefill: one thread runs the decoder for all requests, which join and leave between
two tokens (Orca, OSDI 2022; arXiv 2308.16369).

Rows 0 .. n - 1 of the KV cache are the decoding sequences, row n is the one in prefill: a chunk of its prompt runs
between two decoding steps, so that a long prompt doesn't stall the others. The last row overwrites a finished one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ava_core.errors import AvaError
from ava_core.onnx.session import DecoderSession
from ava_core.serving.requests import Delta, Draining, Failed, QueueFull, Request
from ava_core.serving.sequence import Sequence

log = logging.getLogger(__name__)
RATE_SMOOTHING = 0.1
"""Weight of the newest interval in the exponential mean of the time between two finished requests."""
Deliver = Callable[[list[tuple[Sequence, "Delta | AvaError"]]], None]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Gauges and counters of the engine.

    Attributes:
        queued: requests that wait for a slot.
        running: requests in a slot.
        prompt_tokens: prompt tokens processed since the start.
        generated_tokens: tokens generated since the start.
        steps: forward passes since the start.
        cache_bytes: size of the KV cache.
        failed: the engine's thread has ended with an error.
    """

    queued: int
    running: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    cache_bytes: int
    failed: bool


class Engine:
    """Serves one model.

    Args:
        decoder: the model; the engine's thread alone uses it from now on.
        tokenizer: of the same folder.
        deliver: called in the engine's thread once per step with the step's deltas.
        slots: sequences decoded in one batch, at most.
        max_queue: requests that may wait for a slot.
        chunk: prompt tokens of a prefill chunk, which runs between two decoding steps.
    """

    def __init__(
        self,
        decoder: DecoderSession,
        tokenizer: PreTrainedTokenizerBase,
        deliver: Deliver,
        *,
        slots: int = 16,
        max_queue: int = 64,
        chunk: int = 128,
    ) -> None:
        self.decoder, self.tokenizer, self.deliver = decoder, tokenizer, deliver
        self.context = decoder.shape.max_position_embeddings
        self.vocab_size = decoder.shape.vocab_size
        self.slots, self.max_queue, self.chunk = slots, max_queue, chunk
        self._cache = decoder.cache(slots + 1, self.context)
        self._decoding: list[Sequence] = []
        self._reading: Sequence | None = None
        self._queue: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._draining = self._closed = self._failed = False
        self._prompt_tokens = self._generated_tokens = self._steps = 0
        self._seconds_per_request, self._last_finish = 0.0, time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="ava-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, owner: object = None) -> Sequence:
        """Queue a request. `deliver` gets the sequence with its deltas; `owner` is kept on it.

        Raises:
            QueueFull: too many are waiting.
            Draining: the engine takes no more.
            Failed: its thread has ended.
            AvaError: prompt and new tokens are more than the model's context, or there is no prompt.
        """
        length, room = len(request.prompt_ids), self.context - (request.max_new_tokens > 0)
        if not 0 < length <= room:
            raise AvaError(f"prompt: {length} tokens: must be 1 to {room}: the model's context is {self.context}")
        sequence = Sequence(request, self.tokenizer, self.context, owner)
        with self._changed:
            if self._failed:
                raise Failed("the engine's thread has ended: see the server's log and start it again")
            if self._draining or self._closed:
                raise Draining("the server is going down, or to another model: try again")
            busy = len(self._decoding) + (self._reading is not None)
            room = self.max_queue + max(0, self.slots - busy)
            if len(self._queue) >= room:
                # Cancelled requests don't count as waiting.
                self._queue = deque(each for each in self._queue if not each.cancelled)
            waiting = len(self._queue)
            if waiting >= room:
                raise QueueFull(waiting, max(1.0, math.ceil(waiting * self._seconds_per_request)))
            self._queue.append(sequence)
            self._changed.notify_all()
        return sequence

    def stats(self) -> Stats:
        """The counters at this moment."""
        with self._changed:
            return Stats(
                queued=len(self._queue),
                running=len(self._decoding) + (self._reading is not None),
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                steps=self._steps,
                cache_bytes=self._cache.nbytes,
                failed=self._failed,
            )

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait for the accepted ones; whether all were done within `timeout` seconds."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(self._idle, timeout)

    def close(self) -> None:
        """End the thread; unfinished requests fail."""
        with self._changed:
            self._draining = self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _idle(self) -> bool:
        return not (self._queue or self._decoding or self._reading) or self._failed

    # The engine's thread

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    if not self._closed and self._idle():
                        self._changed.wait_for(lambda: self._closed or not self._idle())
                        self._last_finish = time.monotonic()  # idle time is no part of the time per request
                    if self._closed:
                        break
                    self._admit()
                self._step()
                with self._changed:
                    self._changed.notify_all()
        except Exception:
            log.exception("the engine's thread failed")
            with self._changed:
                self._failed = True  # before the queue is emptied, or a request that comes now would wait for ever
        error = Failed("the server closed before the request was done")
        with self._changed:
            left = [*self._take_all(), *self._queue]
            self._queue.clear()
            self._changed.notify_all()
        if left:
            self.deliver([(sequence, error) for sequence in left])

    def _admit(self) -> None:
        """Start the prefill of the next request that wasn't cancelled, if a slot is free."""
        while self._queue and self._reading is None and len(self._decoding) < self.slots:
            sequence = self._queue.popleft()
            if not sequence.cancelled:
                self._reading = sequence
                self._cache.lengths[len(self._decoding)] = 0

    def _step(self) -> None:
        """One prefill chunk, and one decoding step of all sequences."""
        given: list[tuple[Sequence, Delta | AvaError]] = []
        self._leave([row for row, sequence in enumerate(self._decoding) if sequence.cancelled])
        if self._reading is not None and self._reading.cancelled:
            self._reading = None
        if self._reading is not None:
            try:
                self._read(self._reading, given)
            except Exception as error:  # of one prompt: the cache of the others is untouched
                given.append((self._reading, _model_failed(error)))
                self._reading = None
        if self._decoding:
            try:
                self._decode(given)
            except Exception as error:
                failed = _model_failed(error)
                given += [(sequence, failed) for sequence in self._take_all()]
        self._steps += 1
        if given:
            self.deliver(given)

    def _read(self, sequence: Sequence, given: list) -> None:
        row = len(self._decoding)
        start = int(self._cache.lengths[row])
        tokens = sequence.request.prompt_ids[start : start + self.chunk]
        scored = sequence.scores_prompt
        logits = self.decoder.run(np.asarray([tokens], np.int64), self._cache, first_row=row, all_logits=scored)
        self._prompt_tokens += len(tokens)
        if scored:
            sequence.score_prompt(start, logits[0])
            logits = logits[:, -1]
        if start + len(tokens) < len(sequence.request.prompt_ids):
            return
        if sequence.request.prompt_only:
            given.append((sequence, sequence.end_prompt()))
            self._reading = None
            self._note_finish()
            return
        self._decoding.append(sequence)  # before the next line, so that `drain` finds it in one of the two
        self._reading = None
        self._choose([row], logits, given)

    def _decode(self, given: list) -> None:
        # A sequence that was just read has chosen its first token and takes part at once.
        tokens = np.asarray([[sequence.last_token] for sequence in self._decoding], np.int64)
        logits = self.decoder.run(tokens, self._cache)
        self._choose(list(range(len(self._decoding))), logits, given)

    def _choose(self, rows: list[int], logits_BV: np.ndarray, given: list) -> None:
        """The next token of these rows, of which logits_BV has the logits in their order."""
        best_B = logits_BV.argmax(axis=-1)
        finished = []
        for index, row in enumerate(rows):
            sequence = self._decoding[row]
            delta: Delta | AvaError
            try:
                delta = sequence.choose(logits_BV[index], int(best_B[index]))
            except Exception as error:  # of the sampler or the tokenizer: the others are not to suffer from it
                log.exception("choosing a token failed")
                delta = Failed(f"no token could be chosen: {type(error).__name__}: see the server's log")
            self._generated_tokens += 1
            if isinstance(delta, AvaError) or delta.finish_reason is not None:
                finished.append(row)
                self._note_finish()
            if isinstance(delta, AvaError) or delta.finish_reason or delta.text or delta.logprobs:
                given.append((sequence, delta))
        self._leave(finished)

    def _leave(self, rows: list[int]) -> None:
        """Remove rows: the last ones are moved into them, and the row of the prefill after those."""
        for row in sorted(rows, reverse=True):
            last = len(self._decoding) - 1
            self._cache.move(last, row)
            self._decoding[row] = self._decoding[last]
            self._decoding.pop()
            if self._reading is not None:
                self._cache.move(last + 1, last)

    def _note_finish(self) -> None:
        now = time.monotonic()
        gap = now - self._last_finish
        self._seconds_per_request += RATE_SMOOTHING * (gap - self._seconds_per_request)
        self._last_finish = now

    def _take_all(self) -> list[Sequence]:
        """Empty all rows; the sequences that were in them."""
        taken = [*self._decoding, *([self._reading] if self._reading is not None else [])]
        self._decoding.clear()
        self._reading = None
        return taken


def _model_failed(error: Exception) -> Failed:
    """What a client is told of an exception that is being handled; the traceback goes to the log."""
    log.exception("the model failed on a step")
    if isinstance(error, Failed):
        return error
    return Failed(f"the model failed: {type(error).__name__}: see the server's log")
