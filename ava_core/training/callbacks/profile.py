"""`train.profile`: some steps under PyTorch's profiler (https://docs.pytorch.org/docs/stable/profiler.html)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ava_core.files import whole_folder, write_json
from ava_core.training.callbacks.base import Callback, Row, Run
from ava_core.training.speed.phases import PREFIX

log = logging.getLogger(__name__)
TRACE, SUMMARY, TABLE = "trace.json.gz", "profile.json", "profile.txt"
PASSED_OVER = 5
"""Steps before those that are profiled, if there are so many: the first ones allocate, load and compile."""
DEAREST = 10
PHASES = ("data", "forward", "backward", "communication", "optimiser", "evaluation", "checkpoint", "callbacks")
"""By the marks of `ava_core.training.speed.phases`. Under ZeRO the optimiser's update exchanges gradients too."""
STEP = "ProfilerStep"


class StepProfile(Callback):
    """Profiles steps of the first rank. The folder appears when they are done, or the training ends before.

    It has `trace.json.gz` (for Perfetto, or Chrome's chrome://tracing), `profile.json` and `profile.txt`: seconds per
    step by phase, and the dearest operations by the time that they take themselves.

    Args:
        steps: how many; fewer if the training is at its end.
        folder: replaced if it is there.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps, self.folder = steps, folder
        self._profile: Any = None
        self._seen = self._first = 0

    def on_start(self, run: Run) -> None:
        left = run.config.steps - run.step
        if not run.ranks.is_first or left <= 0:
            return
        active = min(self.steps, left)
        warmup = min(1, left - active)
        wait = min(PASSED_OVER, left - active - warmup)
        self._first = wait + warmup
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def after_step(self, run: Run, row: Row) -> None:
        if self._profile is not None:
            self._seen += 1
            self._profile.step()

    def on_end(self, run: Run) -> None:
        if self._profile is not None:
            finished, self._profile = self._profile, None
            finished.stop()

    def _write(self, recorded: Any) -> None:
        steps = min(self.steps, self._seen - self._first)
        if steps < 1:  # the training has ended with an error
            return
        summary = summarize(recorded, steps)
        table = tabulate(summary)
        with whole_folder(self.folder) as folder:
            recorded.export_chrome_trace(str(folder / TRACE))
            write_json(folder / SUMMARY, summary)
            (folder / TABLE).write_text("\n".join(table) + "\n", encoding="utf-8")
        for line in table:
            log.info("profile: %s", line)
        log.info("profile: wrote %s: open %s at https://ui.perfetto.dev", self.folder, TRACE)


def summarize(recorded: Any, count: int) -> dict[str, Any]:
    """Seconds per step by phase, and of the dearest operations, from a finished profile of `count` steps."""
    averages = recorded.key_averages()
    whole = sum(event.cpu_time_total for event in averages if event.key.startswith(STEP)) / 1e6 / count
    spent = {event.key.removeprefix(PREFIX): event for event in averages if event.key.startswith(PREFIX)}
    phases = {name: spent[name].cpu_time_total / 1e6 / count for name in PHASES if name in spent}
    operations = [event for event in averages if not event.key.startswith((PREFIX, STEP))]
    gpu = any(event.self_device_time_total for event in operations)

    def own(event: Any) -> float:
        return event.self_device_time_total if gpu else event.self_cpu_time_total

    total = sum(map(own, operations)) or 1.0
    dearest = sorted(operations, key=lambda event: (-own(event), event.key))[:DEAREST]
    return {
        "steps": count,
        "seconds_per_step": whole,
        "device": "gpu" if gpu else "cpu",
        "phases": {**phases, "other": max(0.0, whole - sum(phases.values()))},
        "operations": [
            {
                "name": event.key,
                "calls_per_step": event.count / count,
                "seconds_per_step": own(event) / 1e6 / count,
                "share": own(event) / total,
            }
            for event in dearest
        ],
    }


def tabulate(summary: dict[str, Any]) -> list[str]:
    """The summary as lines of text."""
    whole = summary["seconds_per_step"]
    lines = [f"{summary['steps']} steps of {1e3 * whole:.1f} ms", f"{'phase':<40}{'ms a step':>12}{'share':>8}"]
    for name, seconds in summary["phases"].items():
        lines.append(f"{name:<40}{1e3 * seconds:>12.2f}{seconds / whole if whole else 0.0:>8.1%}")
    lines.append(f"{'operation (own time, ' + summary['device'] + ')':<40}{'ms a step':>12}{'share':>8}{'calls':>9}")
    for row in summary["operations"]:
        figures = f"{1e3 * row['seconds_per_step']:>12.2f}{row['share']:>8.1%}{row['calls_per_step']:>9.1f}"
        lines.append(f"{row['name'][:39]:<40}{figures}")
    return lines
