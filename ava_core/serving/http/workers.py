"""A thread pool for what would block the event loop: parsing, chat templates, tokenising, serialising."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Workers:
    """A thread pool.

    Its threads are daemons, unlike those of `concurrent.futures`: a chat template may never return. A cancelled call
    keeps its thread until it returns, unlike with anyio, so that at most `count` calls run.

    Args:
        count: of threads, which start with the first call.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._started = False

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._calls.qsize()

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """The function's result. A caller's cancellation drops a waiting call and abandons a running one."""
        if not self._started:
            self._started = True
            for _ in range(self._count):
                threading.Thread(target=self._work, name="ava-http", daemon=True).start()
        future: Future[Result] = Future()
        self._calls.put((future, lambda: function(*arguments)))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # it is the caller's, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call  # or the last request's body would stay until the next one comes
