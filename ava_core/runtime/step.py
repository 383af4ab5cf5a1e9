"""The step contract in one function: `run_step`.

A step's key (`ava_core.runtime.identity`) is the digest of everything that determines its output. The same key gives
the same bytes, so a finished output is reused, and an unfinished one resumed.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ava_core.config.threads import limit_threads
from ava_core.errors import AvaError, ConfigError
from ava_core.files import write_json, write_whole
from ava_core.runtime import executor_output, manifest
from ava_core.runtime.full_disk import full_disk_explained
from ava_core.runtime.identity import identify, is_present, name_origin
from ava_core.runtime.inputs import require_unchanged, verify_inputs
from ava_core.runtime.request import Request, StepRun
from ava_core.runtime.work import KEPT_HOURS, Entry, WorkStore
from ava_core.steps.spec import StepSpec

log = logging.getLogger(__name__)


def run_step(request: Request, compute: Callable[[StepRun], None]) -> None:
    """Run one step under the step contract: verified inputs, keyed work, an output that is complete or absent.

    Raises:
        ConfigError: the output exists and was made from something else.
        AvaError: an input or the work failed.
    """
    spec = request.spec
    if request.output.is_mount():
        raise ConfigError(
            f"--output {request.output}: is a mount point, which can't be replaced: name a folder inside it"
        )
    identity, entry = _find(request)
    present = is_present(request, identity)
    if present and spec.cacheable and not request.force:
        name_origin(request.output, identity)
        log.info("%s: up to date: %s", spec.name, request.output)
        executor_output.report(request, reused=True)
        return
    with full_disk_explained(request.work, request.output.parent), entry.locked():
        reused = bool(spec.cacheable and not request.force and entry.finished())
        if reused:
            name_origin(entry.output, identity)
            log.info("%s: unchanged: the finished output was taken from %s", spec.name, entry.folder)
        else:
            _compute(request, entry, identity, compute)
        entry.copy_to(request.output)
    executor_output.report(request, reused)
    log.info("%s: wrote %s", spec.name, request.output)
    with suppress(OSError):  # the step is done; what can't be pruned now is pruned by the next one
        WorkStore(request.work).prune(kept_hours=KEPT_HOURS)


def find_entry(request: Request) -> tuple[Entry, bool]:
    """The entry in the work folder, and whether its output is finished; for steps that other processes compute.

    Raises:
        ConfigError: the output exists and was made from something else.
        AvaError: an input is damaged.
    """
    identity, entry = _find(request)
    present = is_present(request, identity)
    return entry, request.spec.cacheable and not request.force and (present or entry.finished() is not None)


def prepare_inputs(request: Request) -> None:
    """Limit the threads and verify the inputs, for work that isn't kept as a step's output."""
    limit_threads(request.threads)
    verify_inputs(request)


def run_part(request: Request, name: str, compute: Callable[[Path], dict[str, Any]]) -> None:
    """Compute a part of a step ahead, in the state folder from which the step resumes. OUTPUT gets report.json.

    Args:
        request: what the step was asked for; its key names the state.
        name: of the part. Different parts may be at work at the same time, and the step waits for them.
        compute: does it in the step's state folder, and returns its report. Not called if the step is finished.

    Raises:
        AvaError: an input or the work failed.
    """
    _, entry = _find(request)
    report: dict[str, Any] = {}
    with full_disk_explained(request.work, request.output.parent), entry.locked_part(name):
        finished = entry.output.is_dir() and not request.force
        if finished:
            log.info("%s %s: not needed: the whole step is finished", request.spec.name, name)
        else:
            entry.state.mkdir(parents=True, exist_ok=True)
            report = compute(entry.state)
        request.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"part": name, "report": report}, indent=2, ensure_ascii=False)
        write_whole(request.output / "report.json", text + "\n")
    if request.executor_output is not None:
        executor_output.write(request.executor_output, {"report": (request.output, {"part": name, "reused": finished})})


def _find(request: Request) -> tuple[manifest.Manifest, Entry]:
    """The output's identity, from verified inputs, and its entry in the work folder. Limits the threads before."""
    limit_threads(request.threads)
    identity = identify(request, verify_inputs(request))
    return identity, WorkStore(request.work).entry(request.spec.name, identity.key)


def _compute(request: Request, entry: Entry, identity: manifest.Manifest, compute: Callable[[StepRun], None]) -> None:
    if request.force:
        entry.forget()
    entry.begin()
    try:
        with full_disk_explained(request.work):  # while it is still full: clearing up makes room
            _compute_staged(request, entry, identity, compute)
    except BaseException:
        entry.abandon()
        raise


def _compute_staged(
    request: Request, entry: Entry, identity: manifest.Manifest, compute: Callable[[StepRun], None]
) -> None:
    run = StepRun(
        config=request.config,
        inputs=request.inputs,
        digests=identity.inputs,
        choices=request.choices,
        output=entry.staging,
        destination=request.output,
        work=request.work,
        code=identity.code,
        state=entry.state,
        kept=entry.keeping,
        progress=request.progress,
        threads=request.threads,
    )
    started = time.monotonic()
    compute(run)
    run.timings["wall_seconds"] = round(time.monotonic() - started, 3)
    require_unchanged(request, identity)
    _check_figures(request.spec, run)
    write_json(entry.staging / "metrics.json", run.metrics)
    entry.finish(replace(identity, files=manifest.describe_files(entry.staging)), run.timings)


def _check_figures(spec: StepSpec, run: StepRun) -> None:
    """Require that every figure in the step's spec is there and finite; otherwise the step has failed."""
    for promised, figures, file in (
        (spec.metrics, run.metrics, "metrics.json"),
        (spec.timings, run.timings, "timings"),
    ):
        if missing := [name for name in promised if name not in figures]:
            raise AvaError(f"{spec.name}: {file} lacks {', '.join(missing)}: this is a defect of the step")
        for name, value in figures.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise AvaError(
                    f"{spec.name}: {name} = {value}: not a finite number; the work has failed and nothing is kept of it"
                )
