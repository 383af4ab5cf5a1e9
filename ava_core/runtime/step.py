"""The step contract in one function: `run_step`.

A step's key is the digest of everything that determines its output: its name, the code that can change it (see
`ava_core.runtime.code`), the configuration sections it reads, its flags, the contents of its inputs, threads and ranks.
The same key gives the same bytes, so a finished output is reused and an unfinished one is gone on with.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ava_core import __version__
from ava_core.config.hardware import kernels_choice, usable_cores
from ava_core.config.hosts import world_size
from ava_core.config.schema import AvaConfig
from ava_core.config.threads import limit_threads
from ava_core.errors import AvaError, ConfigError
from ava_core.runtime import executor_output, manifest
from ava_core.runtime.code import code_of
from ava_core.runtime.digests import digest_tree, digest_value
from ava_core.runtime.full_disk import full_disk_explained
from ava_core.runtime.progress import Progress
from ava_core.runtime.work import KEPT_HOURS, Entry, WorkStore, timings_path
from ava_core.steps import Input, StepSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a step was asked for.

    Attributes:
        spec: the step's row of the step table.
        config: the resolved configuration.
        inputs: folders by input name; a list also where only one is allowed.
        choices: values of the flags that change the result.
        output: the folder to end up with.
        work: the work folder.
        force: replace an output that was made from something else, and compute anew.
        executor_output: where KFP wants its ExecutorOutput, or None.
        exports: where parts of the output are wanted as well, by name of the export.
        progress: shows progress.
        digest_inputs: digests of unverified inputs, by name, where the bytes of the folder alone don't tell them.
    """

    spec: StepSpec
    config: AvaConfig
    inputs: Mapping[str, list[Path]]
    choices: Mapping[str, str]
    output: Path
    work: Path
    force: bool = False
    executor_output: Path | None = None
    exports: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    digest_inputs: Callable[[], dict[str, str]] | None = None

    @property
    def threads(self) -> int:
        """CPU threads that the step computes with."""
        return self.config.threads or usable_cores()

    @property
    def ranks(self) -> int:
        """Processes that the step computes in: those of the training, for the step that trains."""
        return world_size(self.config.train) if "train" in self.spec.sections else 1


@dataclass(kw_only=True)
class StepRun:
    """What a step's computation gets, and where it leaves its figures.

    Attributes:
        config: the resolved configuration.
        inputs: folders by input name.
        digests: digest of each input's contents, as in the manifest.
        choices: values of the flags that change the result.
        output: an empty folder to write into.
        state: a folder that outlives a killed run; holds what an earlier one with the same key left.
        kept: a folder in `state`, not there yet: what it holds when the step has finished stays in the work folder,
            in `WORK/STEP/KEY/kept/`, until its entry is pruned.
        progress: shows progress.
        threads: CPU threads to compute with.
        metrics: figures that are the same on every run; written to metrics.json.
        timings: figures that a clock or a memory meter gave; written to OUTPUT.timings.json.
    """

    config: AvaConfig
    inputs: Mapping[str, list[Path]]
    digests: Mapping[str, str]
    choices: Mapping[str, str]
    output: Path
    state: Path
    kept: Path
    progress: Progress
    threads: int
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def input(self, name: str) -> Path:
        """The folder of an input that may be given once."""
        return self.inputs[name][0]


def run_step(request: Request, compute: Callable[[StepRun], None]) -> None:
    """Run one step under the contract of the design: verified inputs, keyed work, an output whole or not at all.

    Raises:
        ConfigError: the output exists and was made from something else.
        AvaError: an input or the work failed.
    """
    spec = request.spec
    if request.output.is_mount():
        raise ConfigError(
            f"--output {request.output}: is a mount point, which can't be replaced: name a folder inside it"
        )
    limit_threads(request.threads)
    identity = _identify(request, _verify_inputs(request))
    present = _present(request, identity)
    if present and spec.cacheable and not request.force:
        _name_origin(request.output, identity)
        log.info("%s: up to date: %s", spec.name, request.output)
        _report(request, reused=True)
        return
    store = WorkStore(request.work)
    entry = store.entry(spec.name, identity.key)
    with full_disk_explained(request.work, request.output.parent), entry.locked():
        reused = bool(spec.cacheable and not request.force and entry.finished())
        if reused:
            _name_origin(entry.output, identity)
            log.info("%s: unchanged: the finished output was taken from %s", spec.name, entry.folder)
        else:
            _compute(request, entry, identity, compute)
        entry.copy_to(request.output)
    _report(request, reused)
    log.info("%s: wrote %s", spec.name, request.output)
    with suppress(OSError):  # the step is done; what can't be pruned now is pruned by the next one
        store.prune(kept_hours=KEPT_HOURS)


def find_entry(request: Request) -> tuple[Entry, bool]:
    """The request's entry in the work folder, and whether nothing is left to compute, for work done elsewhere.

    Raises:
        ConfigError: the output exists and was made from something else.
        AvaError: an input is damaged.
    """
    limit_threads(request.threads)
    identity = _identify(request, _verify_inputs(request))
    entry = WorkStore(request.work).entry(request.spec.name, identity.key)
    present = _present(request, identity)
    return entry, request.spec.cacheable and not request.force and (present or entry.finished() is not None)


def prepare_inputs(request: Request) -> None:
    """Limit the threads and verify the inputs, for work that isn't kept as a step's output."""
    limit_threads(request.threads)
    _verify_inputs(request)


def run_part(request: Request, name: str, compute: Callable[[Path], dict[str, Any]]) -> None:
    """Do a part of a step's work ahead, in the state that the step then goes on from. OUTPUT gets report.json.

    Args:
        request: what the step was asked for; its key names the state.
        name: of the part. Different parts may be at work at the same time, and the step waits for them.
        compute: does it in the step's state folder, and returns its report. Not called if the step is finished.

    Raises:
        AvaError: an input or the work failed.
    """
    limit_threads(request.threads)
    identity = _identify(request, _verify_inputs(request))
    entry = WorkStore(request.work).entry(request.spec.name, identity.key)
    report: dict[str, Any] = {}
    with full_disk_explained(request.work, request.output.parent), entry.locked_part(name):
        finished = entry.output.is_dir() and not request.force
        if finished:
            log.info("%s %s: not needed: the whole step is finished", request.spec.name, name)
        else:
            entry.state.mkdir(parents=True, exist_ok=True)
            report = compute(entry.state)
        request.output.mkdir(parents=True, exist_ok=True)
        path = request.output / "report.json"
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps({"part": name, "report": report}, indent=2, ensure_ascii=False) + "\n")
        partial.rename(path)
    if request.executor_output is not None:
        executor_output.write(request.executor_output, {"report": (request.output, {"part": name, "reused": finished})})


@dataclass(frozen=True)
class _Inputs:
    """Digests by name: of the contents of each input, and of the manifests of those that have one."""

    contents: dict[str, str]
    manifests: dict[str, str]


def _verify_inputs(request: Request) -> _Inputs:
    """Refuses outputs of other steps and changed bytes."""
    producers = _producers()
    contents = dict(request.digest_inputs()) if request.digest_inputs else {}
    manifests: dict[str, str] = {}
    for port in request.spec.inputs:
        if port.name in contents:
            continue
        found = [_digest_input(port, folder, producers) for folder in request.inputs.get(port.name, [])]
        # A repeated input is a set: in which order they are given makes no difference.
        for index, (digest, origin) in enumerate(sorted(found)):
            name = f"{port.name}.{index}" if port.repeated else port.name
            contents[name] = digest
            if origin:
                manifests[name] = origin
    return _Inputs(contents, manifests)


def _producers() -> dict[str, str]:
    from ava_core.steps import STEPS

    return {spec.output: spec.name for spec in STEPS.values()}


def _digest_input(port: Input, folder: Path, producers: Mapping[str, str]) -> tuple[str, str]:
    """Digest of the contents, and of the manifest or an empty string."""
    if port.verified:
        found = manifest.verify(folder, producers[port.kind or port.name])
        return found.digest, found.sha256
    if folder.is_dir():
        return digest_tree(folder), ""
    raise AvaError(f"--{port.name} {folder}: no such folder")


def _require_unchanged(request: Request, identity: manifest.Manifest) -> None:
    """What was read while the step ran is what was verified before it; what hasn't been touched costs a look.

    Raises:
        AvaError: an input was changed or removed meanwhile, so nothing tells what the output was made from.
    """
    remedy = "the output is not kept: put the input back and run the step again, it goes on from its state"
    known = {*identity.inputs.values()}
    for port in request.spec.inputs:
        for folder in request.inputs.get(port.name, []) if port.verified else []:
            try:
                same = manifest.verify(folder).digest in known
            except AvaError as error:
                raise AvaError(f"{error}; it was when {request.spec.name} began: {remedy}") from error
            if not same:
                raise AvaError(f"--{port.name} {folder}: was replaced while {request.spec.name} ran: {remedy}")


def _name_origin(folder: Path, identity: manifest.Manifest) -> None:
    """Say of a finished output that is used again what its inputs are now: equal files may have been made otherwise."""
    found = manifest.read(folder)
    if found.made_from != identity.made_from:
        manifest.write(folder, replace(found, made_from=identity.made_from))


def _identify(request: Request, inputs: _Inputs) -> manifest.Manifest:
    spec = request.spec
    code = code_of(spec, request.work)
    identity: dict[str, Any] = {
        "step": spec.name,
        "code": code.digest,
        "config": digest_value(values_read(spec, request.config)),
        "choices": {**request.choices, **(kernels_choice() if code.runs_kernels else {})},
        "inputs": inputs.contents,
        "threads": request.threads,
        "ranks": request.ranks,
    }
    return manifest.Manifest(key=digest_value(identity), version=__version__, made_from=inputs.manifests, **identity)


def values_read(spec: StepSpec, config: AvaConfig) -> dict[str, Any]:
    """The sections of the configuration that a step reads, as JSON has them."""
    resolved = config.model_dump(mode="json", by_alias=True)
    return {name: resolved[name] for name in spec.sections}


def _present(request: Request, identity: manifest.Manifest) -> bool:
    """Whether the output is there already, complete and from the same key."""
    output = request.output
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        if request.force:
            return False
        raise ConfigError(f"--output {output}: exists and is no folder: pass --force to replace it")
    try:
        key = manifest.verify(output).key
    except AvaError as error:
        if request.force:
            return False
        raise ConfigError(
            f"--output {output}: exists and is not a finished output ({error}): pass --force to replace it"
        ) from error
    if key == identity.key and timings_path(output).exists():
        return True
    if not request.force and key != identity.key:
        raise ConfigError(f"--output {output}: exists and was made from something else: pass --force to replace it")
    return False


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
        state=entry.state,
        kept=entry.keeping,
        progress=request.progress,
        threads=request.threads,
    )
    started = time.monotonic()
    compute(run)
    run.timings["wall_seconds"] = round(time.monotonic() - started, 3)
    _require_unchanged(request, identity)
    _check_figures(request.spec, run)
    (entry.staging / "metrics.json").write_text(json.dumps(run.metrics, indent=2, sort_keys=True) + "\n")
    entry.finish(replace(identity, files=manifest.describe_files(entry.staging)), run.timings)


def _check_figures(spec: StepSpec, run: StepRun) -> None:
    """Every promised figure is there and finite; otherwise the step has failed, whatever it wrote."""
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


def _report(request: Request, reused: bool) -> None:
    """Tell KFP what there is, also when nothing had to be computed."""
    metrics = json.loads((request.output / "metrics.json").read_text())
    artifacts: dict[str, tuple[Path | None, Mapping[str, Any]]] = {
        request.spec.output: (request.output, {"step": request.spec.name, "reused": reused}),
        "metrics": (None, metrics),
    }
    for export in request.spec.exports:
        path = request.exports.get(export.name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if export.file is not None:
                shutil.copyfile(request.output / export.file, path)
                artifacts[export.name] = (path, json.loads(path.read_text()) if export.metadata else {})
            else:
                value = int(metrics[export.metric])
                path.write_text(json.dumps(bool(value) if export.boolean else value))
    if request.executor_output is not None:
        executor_output.write(request.executor_output, artifacts)
