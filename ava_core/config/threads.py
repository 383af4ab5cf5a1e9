"""What the libraries that compute in threads read from the environment, once, when they are loaded."""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""How OpenMP's threads wait for each other: after some microseconds, asleep. By default they spin for milliseconds, and
where other processes want the cores too, each spins away the time that the one it waits for would need. To wake a
thread that sleeps costs tens of microseconds, and most waits are shorter. The second is libgomp's own word for it, in
rounds of a few nanoseconds; measured by `python -m benchmarks.waiting`."""


def limit_threads(threads: int) -> None:
    """Set the thread pools' sizes (OpenMP, MKL, OpenBLAS, Rayon) in the environment.

    Must run before torch, numpy or tokenizers are imported, which read it once.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    let_threads_sleep()


def let_threads_sleep() -> None:
    """Threads that wait sleep, also in processes that this one starts, unless the environment says how they wait."""
    if not any(name in os.environ for name in WAITING):
        os.environ.update(WAITING)
