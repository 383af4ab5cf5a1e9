"""Memory and utilisation of the machine, sampled while it trains.

None of it is the same on two runs, so it goes to a file of its own and never into a row of the history.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import torch

from ava_core.config.hardware import usable_cores
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.callbacks.records import JsonLines

FILE = "system.jsonl"
EVERY_SECONDS = 10.0


class SystemMetrics(Callback):
    """Writes a row to `system.jsonl` at most every `every` seconds; the first after the first step.

    A row has `time` (milliseconds since 1970), `step`, `host_memory_bytes` (resident memory of this process),
    `host_memory_share` (of the machine, all processes), `cpu_share` (of the usable cores, by this process, since the
    row before), and for each GPU of this process's own `gpu_memory_bytes` (allocated by PyTorch), `gpu_memory_share`
    (of the device, all processes) and, where NVIDIA's library can be asked, `gpu_utilization` in [0, 1].

    Args:
        state: the training's state folder.
        every: seconds.
    """

    def __init__(self, state: Path, every: float = EVERY_SECONDS) -> None:
        self.rows, self.every = JsonLines(state / FILE), every
        self._process = psutil.Process()
        self._cores = usable_cores()
        self._next = 0.0
        self._before = (0.0, 0.0)
        self._ask_gpu = True

    def on_start(self, run: Run) -> None:
        self._before = (time.monotonic(), time.process_time())
        self._next = 0.0

    def after_step(self, run: Run, row: Row) -> None:
        if time.monotonic() >= self._next and run.ranks.is_first:
            self._next = time.monotonic() + self.every
            self.rows.append({"time": time.time_ns() // 1_000_000, "step": int(row["step"]), **self.measure()})

    def measure(self) -> dict[str, float]:
        """The figures of a row at this moment."""
        (wall, cpu), self._before = self._before, (time.monotonic(), time.process_time())
        seconds = (self._before[0] - wall) * self._cores
        figures: dict[str, float] = {
            "host_memory_bytes": self._process.memory_info().rss,
            "host_memory_share": psutil.virtual_memory().percent / 100,
            "cpu_share": round((self._before[1] - cpu) / seconds, 4) if seconds > 0 else 0.0,
        }
        return figures | (self._measure_gpu() if torch.cuda.is_available() else {})

    def _measure_gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info()
        figures: dict[str, Any] = {
            "gpu_memory_bytes": torch.cuda.memory_allocated(),
            "gpu_memory_share": round(1 - free / total, 4),
        }
        if self._ask_gpu:
            try:
                figures["gpu_utilization"] = torch.cuda.utilization() / 100
            except (ImportError, RuntimeError):  # without nvidia-ml-py, or without the right to ask
                self._ask_gpu = False
        return figures
