"""A worker of a sweep: takes trials one after the other until there are none left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ava_core.config import AvaConfig
from ava_core.errors import AvaError, shorten
from ava_core.files import write_json, write_whole
from ava_core.interruption import Interrupted
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_value
from ava_core.runtime.identity import values_read
from ava_core.runtime.work import Entry
from ava_core.steps.table import STEPS
from ava_core.steps.tools import makers
from ava_core.sweeping.checks import Base, Checked
from ava_core.sweeping.report import render
from ava_core.sweeping.results import Results, TrialRow, gather
from ava_core.sweeping.runs import SweepRuns
from ava_core.sweeping.study import Claim, SweepStudy
from ava_core.sweeping.training_entry import training_entry
from ava_core.sweeping.trial import AVA, Outcome, TrialFailed, TrialPruned, TrialRunner
from ava_core.tracking.records import Point

log = logging.getLogger(__name__)
JSON, PAGE, BEST = "sweep.json", "sweep.html", "best.yaml"


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a sweep was asked for.

    Attributes:
        name: of the sweep.
        base: the configuration.
        checked: the space, held against it.
        storage: address of the database.
        folder: for trials and results.
        work: the work folder.
        shards: of all trials; None: they are made.
        data: the corpus' folder.
        max_failures: trials that may fail before the sweep ends.
        program: `ava`.
        find_entry: see `TrialRunner`; None: by the step's key.
    """

    name: str
    base: Base
    checked: Checked
    storage: str
    folder: Path
    work: Path
    shards: Path | None = None
    data: Path | None = None
    max_failures: int = 3
    program: Sequence[str] = AVA
    find_entry: Callable[[AvaConfig, Path, Path], Entry] | None = None


def run_sweep(request: SweepRequest) -> Results:
    """Run trials until there are none left for this worker, and write the results after each.

    Raises:
        ConfigError: the storage has another sweep of this name.
        AvaError: the storage can't be reached, the shards can't be made, or more than `max_failures` trials failed.
    """
    study = open_study(request)
    runner = _runner(request)
    _require_few_failures(study, request)
    so_far = gather(study, importances=False).counts()
    if study.checked.trials > sum(so_far.values()) or "interrupted" in so_far or "running" in so_far:
        _make_shards(runner, request)
    config = request.base.resolve().config
    runs = SweepRuns(request.name, study.uid, config.registry.experiment)
    log.info("sweep: %s: %d trials, results in %s", request.name, request.checked.trials, request.folder)
    while (claim := study.claim()) is not None:
        with study.at_work(claim):
            _run_trial(claim, study, runner, runs)
        write_results(study, request, importances=False)
        _require_few_failures(study, request)
    results = write_results(study, request)
    _finish(runs, results)
    return results


def open_study(request: SweepRequest) -> SweepStudy:
    """The sweep in its storage."""
    config = request.base.resolve().config
    # What trials have in common, without what the space says.
    values = {step: values_read(STEPS[step], config, names=True) for step in _steps(request.checked)}
    base = {"configuration": digest_value({"threads": config.threads, **values})}
    if request.shards is not None:
        base["--shards"] = manifest.verify(request.shards, *makers(STEPS["preprocess"].kind)).digest
    return SweepStudy(request.storage, request.name, request.checked, base)


def write_results(study: SweepStudy, request: SweepRequest, *, importances: bool = True) -> Results:
    """sweep.json, sweep.html and, once a trial is complete, best.yaml."""
    return keep_results(gather(study, importances=importances), request)


def keep_results(results: Results, request: SweepRequest) -> Results:
    """As `write_results`, of what was gathered elsewhere."""
    request.folder.mkdir(parents=True, exist_ok=True)
    write_json(request.folder / JSON, results.as_dict())
    write_whole(request.folder / PAGE, render(results))
    if results.best:
        text = _runner(request).overlay_text(results.best.settings, _title(results, results.best))
        write_whole(request.folder / BEST, text)
    return results


def _run_trial(claim: Claim, study: SweepStudy, runner: TrialRunner, runs: SweepRuns) -> None:
    settings = ", ".join(f"{key} = {value}" for key, value in claim.settings.items())
    log.info("trial %d%s: %s", claim.number, " goes on" if claim.again else "", shorten(settings, 300))
    environment = runs.begin(claim.number, claim.settings)
    started = time.monotonic()
    judge = _judge(claim, study) if study.checked.space.pruner else None
    try:
        outcome = runner.run(claim.number, claim.settings, environment, judge)
    except TrialPruned as pruned:
        study.prune(claim, {"steps": pruned.step, "seconds": _since(started)})
        runs.end(claim.number, "pruned")
        log.info("trial %d: pruned at step %d", claim.number, pruned.step)
    except TrialFailed as failed:
        study.fail(claim, str(failed), {"seconds": _since(started)})
        runs.end(claim.number, "failed", reason=str(failed))
        log.warning("trial %d: failed: %s", claim.number, failed)
    except (Interrupted, KeyboardInterrupt):
        runs.end(claim.number, "interrupted")
        raise
    else:
        result = {"steps": outcome.figures.get("steps"), "seconds": _since(started), "figures": outcome.figures}
        study.complete(claim, outcome.values, result)
        _record(claim, study, outcome, runs)


def _record(claim: Claim, study: SweepStudy, outcome: Outcome, runs: SweepRuns) -> None:
    metrics = study.checked.plan.metrics
    step = int(outcome.figures.get("steps", 0))
    points = [Point(metric.name, value, step) for metric, value in zip(metrics, outcome.values, strict=True)]
    runs.end(claim.number, "complete", points)
    log.info("trial %d: %s", claim.number, ", ".join(f"{point.name} {point.value:.6g}" for point in points))


def _judge(claim: Claim, study: SweepStudy) -> Callable[[int, float], bool]:
    """Asks the pruner about a step that no earlier run of the trial has come to."""
    seen = study.seen(claim)

    def judge(step: int, figure: float) -> bool:
        return step > seen and study.is_hopeless(claim, step, figure)

    return judge


def _runner(request: SweepRequest) -> TrialRunner:
    def find_entry(config: AvaConfig, shards: Path, output: Path) -> Entry:
        return training_entry(config, shards, output, request.work)

    return TrialRunner(
        base=request.base,
        checked=request.checked,
        folder=request.folder,
        work=request.work,
        shards=request.shards,
        data=request.data,
        find_entry=request.find_entry or find_entry,
        program=request.program,
    )


def _make_shards(runner: TrialRunner, request: SweepRequest) -> None:
    """Those of all trials, where the space doesn't touch them and none were given."""
    if request.checked.plan.preprocess or request.shards is not None:
        return
    shards = request.folder / "shards"
    log.info("sweep: making the shards of all trials")
    try:
        runner.make_shards(shards)
    except TrialFailed as error:
        raise AvaError(str(error)) from error
    runner.shards = shards


def _require_few_failures(study: SweepStudy, request: SweepRequest) -> None:
    failed = [row for row in gather(study, importances=False).rows if row.state == "failed"]
    if len(failed) > request.max_failures:
        raise AvaError(
            f"sweep {request.name}: {len(failed)} trials failed, more than --max-failures {request.max_failures}; trial"
            f" {failed[-1].number}: {failed[-1].reason}"
        )


def _finish(runs: SweepRuns, results: Results) -> None:
    """End the sweep's run, unless other workers are at trials of it."""
    if results.counts().keys() & {"running", "interrupted"}:
        return
    best = results.best
    tags: Mapping[str, str] = {"ava.sweep.best_trial": str(best.number)} if best else {}
    points = [Point(f"best_{name}", value, 0) for name, value in best.values.items()] if best else []
    runs.finish(tags, points)


def _steps(checked: Checked) -> list[str]:
    plan = checked.plan
    wanted = {"preprocess": True, "train": True, "quantize": bool(plan.schemes), "evaluate": plan.evaluate}
    return [step for step, there in wanted.items() if there]


def _title(results: Results, best: TrialRow) -> str:
    figures = ", ".join(f"{name} {value:.6g}" for name, value in best.values.items())
    return f"The best of {len(results.rows)} trials of the sweep {results.name}, number {best.number}: {figures}."


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
