"""A server over real sockets, with an engine of the test's own making instead of a model."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from ava_core.serving.requests import Delta, Draining, QueueFull, TokenLogprobs

CONTEXT = 64
CREATED = 1_700_000_000
WORD = "ab "
"""What the engine says with each token."""


class ScriptedEngine:
    """Says WORD again and again, until `max_new_tokens`; a token each `seconds` to each sequence.

    Attributes:
        requests: all that were submitted.
        running: sequences that are neither done nor given up.
        refusal: raised by `submit`, if there is one.
        fault: given to every sequence in place of its third token, if there is one.
    """

    context = CONTEXT

    def __init__(self, deliver):
        self.deliver = deliver
        self.requests, self.running = [], []
        self.refusal = self.fault = None
        self.seconds = 0.0
        self.failed = False
        self.generated = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request, owner=None):
        if self.refusal is not None:
            raise self.refusal
        assert isinstance(request.prompt_ids, tuple) and request.strategy in ("greedy", "nucleus")
        assert len(request.prompt_ids) + request.max_new_tokens <= self.context
        sequence = SimpleNamespace(request=request, owner=owner, tokens=0, cancelled=False)
        sequence.cancel = lambda: setattr(sequence, "cancelled", True)
        with self._changed:
            self.requests.append(request)
            self.running.append(sequence)
            self._changed.notify()
        return sequence

    def stats(self):
        return SimpleNamespace(
            queued=2,
            running=len(self.running),
            prompt_tokens=7,
            generated_tokens=self.generated,
            steps=3,
            cache_bytes=4096,
            failed=self.failed,
        )

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(5)

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.running or self._closed)
                if self._closed:
                    return
                self.running = [sequence for sequence in self.running if not sequence.cancelled]
                given = [(sequence, self._next(sequence)) for sequence in self.running]
                self.running = [
                    sequence for sequence, delta in given if isinstance(delta, Delta) and delta.finish_reason is None
                ]
            self.deliver(given)
            time.sleep(self.seconds)

    def _next(self, sequence):
        echo = bytes(sequence.request.prompt_ids).decode() if sequence.request.echo and not sequence.tokens else ""
        if sequence.request.prompt_only:
            return Delta(text=echo, tokens=0, finish_reason="length")
        sequence.tokens += 1
        self.generated += 1
        if self.fault is not None and sequence.tokens == 3:
            return self.fault
        done = sequence.tokens == sequence.request.settings.max_new_tokens
        logprobs = ()
        if sequence.request.logprobs is not None:
            top = {ord("a"): -0.5, ord("b"): -1.5}
            logprobs = (TokenLogprobs(token=ord("a"), logprob=-0.5, top=top, data=b"a", offset=0),)
        return Delta(
            text=echo + WORD, tokens=sequence.tokens, finish_reason="length" if done else None, logprobs=logprobs
        )


@pytest.fixture
def serve(byte_tokenizer):
    """Start servers; options as `create_app` takes them. The result has `address`, `engine`, `models`."""
    import uvicorn

    from ava_core.serving.http.app import create_app
    from ava_core.serving.http.connections import BoundedProtocol
    from ava_core.serving.streams import Bridge

    started = []

    def start(**options):
        loop = asyncio.new_event_loop()
        engine = ScriptedEngine(Bridge(loop).deliver)
        served = SimpleNamespace(
            name="ava-test", version="3", engine=engine, tokenizer=byte_tokenizer, created=CREATED, ends=()
        )
        models = SimpleNamespace(
            served=served, others=(), current=lambda: models.served, all=lambda: (models.current(), *models.others)
        )
        app = create_app(models, **options)
        config = uvicorn.Config(
            app,
            port=0,
            log_level="error",
            log_config=None,  # so that tests see what uvicorn logs
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),), daemon=True)
        thread.start()
        started.append((server, thread, engine))
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        return SimpleNamespace(
            address=f"http://127.0.0.1:{port}", port=port, engine=engine, models=models, app=app, loop=loop
        )

    yield start
    for server, thread, engine in started:
        server.should_exit = True
        thread.join(10)
        engine.close()


@pytest.fixture
def client_of():
    """OpenAI's own clients of a server."""
    import openai

    clients = []

    def make(server, key="none"):
        clients.append(openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=200))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def wait_until(condition, seconds=200.0):
    """Wait for a condition; fails when it doesn't come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.01)


@pytest.fixture
def queue_full():
    return QueueFull(5, 2.0)


@pytest.fixture
def draining():
    return Draining("the server is going down")
