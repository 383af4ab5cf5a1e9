"""Heartbeats over the store: detect a machine that has vanished without closing its connections.

A process that dies closes its connections, and the others' exchanges end at once. A machine that loses its power or
its network closes none: an exchange would wait for it as long as TCP does, a quarter of an hour and more, or as long as
the process group allows. So one process of each machine increments a counter in the store every few
seconds, and watches that the others' counters advance.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ava_core.distributed.peers import GO_ON, LostPeer

if TYPE_CHECKING:
    from torch.distributed import Store

log = logging.getLogger(__name__)
EVERY_SECONDS = 5.0
WARN_SECONDS = 20.0
"""Silence of a machine after which it is named in the log: before mpirun ends all with a message that names none."""
LOST_SECONDS = 90.0
"""Silence of a machine after which this process ends. Longer than mpirun's own patience (60 s, `launching/mpi.py`):
an mpirun that hears first of a failed rank waits for the silent machine's daemon, for as long as TCP does."""
TICK_SECONDS = 1.0
STOP_SECONDS = 10.0
"""Time for the threads to end."""


def end_process(error: LostPeer) -> None:
    """End at once: the main thread waits inside an exchange and can't be reached."""
    log.error("%s", error)
    logging.shutdown()
    os._exit(error.exit_code)


when_lost: Callable[[LostPeer], None] = end_process
"""What is called, in a thread of its own, when a machine is lost."""


class Heartbeat:
    """Heartbeats of this machine, and the watch over those of the others.

    Args:
        rank: of this process.
        machines: names of all machines, by the rank of the one process of each that takes part.
        connect: gives a connection to the store that no one else uses, for a call may wait for ever.
    """

    def __init__(self, rank: int, machines: Mapping[int, str], connect: Callable[[], Store]) -> None:
        self._rank, self._machines, self._connect = rank, machines, connect
        self._others = [other for other in machines if other != rank]
        self._counts: dict[int, int] = {}
        # Counted in ticks of this process, so that one that was itself stopped for a while accuses nobody.
        self._silence = dict.fromkeys(self._others, 0.0)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]

    def start(self) -> None:
        """Start two threads: one talks to the store and may block there, the other watches the time."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop: from here on others may end.

        Waits for the threads: an interpreter that ends while one is inside the store aborts the process.
        """
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(STOP_SECONDS)

    def _beat(self) -> None:
        try:
            store = self._connect()
            while not self._stopped.is_set():
                store.add(_key(self._rank), 1)
                for other in self._others:
                    count = store.add(_key(other), 0)
                    if count != self._counts.get(other):
                        self._counts[other], self._silence[other] = count, 0.0
                self._stopped.wait(EVERY_SECONDS)
        except RuntimeError as error:  # the store has gone: if rank 0 has not just ended, the silence will tell
            log.debug("heartbeat: %s", error)

    def _watch(self) -> None:
        warned: set[int] = set()
        while not self._stopped.wait(TICK_SECONDS):
            for other in self._others:  # rank 0 first: the store is there, and without it all are silent
                self._silence[other] += TICK_SECONDS
                silence = self._silence[other]
                message = f"rank {other} on {self._machines[other]} has given no sign of life for {silence:.0f} s"
                if silence >= LOST_SECONDS:
                    when_lost(LostPeer(f"{message}: the training ends: {GO_ON}"))
                    return
                if silence >= WARN_SECONDS and other not in warned:
                    warned.add(other)
                    log.warning("%s", message)
                elif silence < WARN_SECONDS:
                    warned.discard(other)


def _key(rank: int) -> str:
    return f"ava_heartbeat/{rank}"
