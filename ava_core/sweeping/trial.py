"""One trial: the steps of an ordinary run, each a process of its own, watched while it trains."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ava_core
from ava_core.config import AvaConfig, to_yaml
from ava_core.errors import AvaError, ConfigError
from ava_core.files import write_whole
from ava_core.launching import processes
from ava_core.runtime.work import Entry, timings_path
from ava_core.sweeping.checks import Base, Checked
from ava_core.sweeping.watch import HISTORY, Judge, Watch
from ava_core.tracking.feed import Feed

log = logging.getLogger(__name__)
AVA = (sys.executable, "-m", "ava_core.cli.main")
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 30.0
"""From SIGTERM to SIGKILL: a step closes its MLflow run first."""
TRACKING = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "AVA_TRACKING_URI", "AVA_PIPELINE_RUN")
"""Variables that decide where a step is recorded; a trial's training gets those of its own run."""


class TrialFailed(AvaError):
    """A step of the trial has failed; the message is its own."""


class TrialPruned(Exception):
    """The trial was ended early.

    Args:
        step: of the training, at which it was decided.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished trial came to.

    Attributes:
        values: of the objectives, in their order.
        figures: of all steps, by the names that a sweep uses.
    """

    values: list[float]
    figures: dict[str, float]


@dataclass(kw_only=True)
class TrialRunner:
    """Runs the steps of trials.

    Attributes:
        base: the configuration that they vary.
        checked: the space.
        folder: of the sweep; a trial has `trials/NUMBER` in it.
        work: the work folder.
        shards: those of all trials; None where each makes its own.
        data: the corpus' folder, for trials that make shards.
        find_entry: the entry in the work folder of a training, from its configuration, its shards and its output.
        program: `ava`.
    """

    base: Base
    checked: Checked
    folder: Path
    work: Path
    shards: Path | None
    data: Path | None
    find_entry: Callable[[AvaConfig, Path, Path], Entry]
    program: Sequence[str] = AVA
    _running: list[subprocess.Popen] = field(default_factory=list)

    def run(
        self, number: int, settings: Mapping[str, Any], environment: Mapping[str, str], judge: Judge | None
    ) -> Outcome:
        """Run a trial to its end.

        Args:
            number: of the trial.
            settings: its values, by dotted key.
            environment: variables that name the training's run in MLflow.
            judge: asked at each evaluation in order; None: nobody is.

        Raises:
            TrialFailed: with what the step that failed said.
            TrialPruned: the judge has ended it; nothing is left of the training.
        """
        folder = self.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "settings.yaml", self.overlay_text(settings, f"Trial {number} of the sweep."))
        try:
            config = self.base.resolve(settings).config
        except ConfigError as error:
            raise TrialFailed("; ".join(error.faults)) from error
        plan = self.checked.plan
        shards = self.shards
        if shards is None:
            shards = folder / "shards"
            data = ["--data", str(self.data)] if self.data else []
            self._step("preprocess", shards, settings, data)
        model = folder / "model"
        self._train(config, shards, model, settings, environment, judge)
        read = ["--model", str(model), "--shards", str(shards)]
        quantized = {scheme: folder / "quantized" / scheme for scheme in plan.schemes}
        for scheme, output in quantized.items():
            self._step("quantize", output, settings, [*read, "--scheme", scheme])
        if plan.evaluate:
            given = [word for output in quantized.values() for word in ("--quantized", str(output))]
            self._step("evaluate", folder / "evaluation", settings, [*read, *given])
        return self._outcome(folder, shards)

    def make_shards(self, shards: Path) -> None:
        """Make those that all trials share.

        Raises:
            TrialFailed: with what preprocess said.
        """
        self._step("preprocess", shards, {}, ["--data", str(self.data)] if self.data else [])

    def trial_folder(self, number: int) -> Path:
        """Where the outputs of a trial are."""
        return self.folder / "trials" / f"{number:04d}"

    def overlay_text(self, settings: Mapping[str, Any], title: str) -> str:
        """The file that makes, given with --config, a trial of the same params.yaml."""
        nulls = [key for key, value in settings.items() if value is None]
        # A null in a file means "as the layers below say".
        notes = "".join(f"# {key} is null: add --set {key}=null\n" for key in nulls)
        return f"# {title}\n{notes}{to_yaml(self.base.overlay(settings))}"

    def end(self) -> None:
        """End what still runs."""
        processes.end(self._running, PATIENCE_SECONDS)
        self._running.clear()

    def _train(
        self,
        config: AvaConfig,
        shards: Path,
        model: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        judge: Judge | None,
    ) -> None:
        if judge is None:
            self._step("train", model, settings, ["--shards", str(shards)], environment)
            return
        entry = self.find_entry(config, shards, model)
        watch = Watch(judge, config.train.steps)
        feed = Feed(entry.state / HISTORY, "step")

        def hopeless() -> bool:
            return watch.ends(feed.read())

        self._step("train", model, settings, ["--shards", str(shards)], environment, hopeless)
        # The rows of its last moments; and all of them, where the finished work was taken again. So the same rows are
        # judged in the same order however fast the training is and whoever runs it.
        if watch.ended_at is None:
            watch.ends(Feed(model / HISTORY, "step", watch.last).read())
        if watch.ended_at is not None:
            if not entry.output.is_dir():
                entry.discard()
            _remove_outputs(model)
            raise TrialPruned(watch.ended_at)

    def _step(
        self,
        step: str,
        output: Path,
        settings: Mapping[str, Any],
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        hopeless: Callable[[], bool] | None = None,
    ) -> None:
        """Run a step, or end it as soon as `hopeless` says so."""
        said = output.with_name(f"{output.name}.said")
        output.parent.mkdir(parents=True, exist_ok=True)
        lifeline = [sys.executable, "-P", "-m", "ava_core.sweeping.lifeline", str(os.getpid())]
        command = [*lifeline, *self.program, step, *self._configuration(settings), *arguments, "--output", str(output)]
        command += ["--work", str(self.work), "--quiet", "--log-level", "warning"]
        log.debug("sweep: %s", command)
        clean = {name: value for name, value in os.environ.items() if name not in TRACKING and name != "AVA_LOG_FILE"}
        with said.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**clean, "PYTHONPATH": _search_path(clean), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,  # Ctrl-C is this process's to hear
            )
            self._running.append(process)
            try:
                while process.poll() is None:
                    if hopeless and hopeless():
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                self.end()
        if hopeless and hopeless():
            said.unlink(missing_ok=True)
            return
        if process.returncode:
            raise TrialFailed(f"{step}: {_last_words(said, process.returncode)}")
        said.unlink(missing_ok=True)

    def _configuration(self, settings: Mapping[str, Any]) -> list[str]:
        """The flags that a person would give."""
        base = self.base
        flags = ["--params", str(base.params)] if base.params else []
        flags += [word for file in base.configs for word in ("--config", str(file))]
        overrides = [*base.overrides, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
        return flags + [word for override in overrides for word in ("--set", override)]

    def _outcome(self, folder: Path, shards: Path) -> Outcome:
        figures = dict(_figures(folder, shards, self.checked))
        missing = [metric.name for metric in self.checked.plan.metrics if metric.name not in figures]
        if missing:
            raise TrialFailed(f"the steps gave no {', '.join(missing)}")
        return Outcome(values=[figures[metric.name] for metric in self.checked.plan.metrics], figures=figures)


def _figures(folder: Path, shards: Path, checked: Checked) -> Iterator[tuple[str, float]]:
    """Of train, all; of the other steps, those that are asked for."""
    yield from _read("train", folder / "model").items()
    outputs = {"preprocess": shards, "evaluate": folder / "evaluation"}
    for metric in checked.plan.metrics:
        output = folder / "quantized" / metric.scheme if metric.step == "quantize" else outputs.get(metric.step)
        if output is not None:
            figures = _read(metric.step, output)
            if metric.figure in figures:
                yield metric.name, figures[metric.figure]


def _read(step: str, output: Path) -> dict[str, float]:
    try:
        timings = json.loads(timings_path(output).read_text())
        return {**timings, **json.loads((output / "metrics.json").read_text())}
    except (OSError, ValueError) as error:
        raise TrialFailed(f"{step}: {output.name}: its figures can't be read: {error}") from error


def _search_path(environment: Mapping[str, str]) -> str:
    """Where Python finds Ava, whatever the current folder is."""
    return os.pathsep.join(filter(None, [str(Path(ava_core.__file__).parents[1]), environment.get("PYTHONPATH", "")]))


def _remove_outputs(model: Path) -> None:
    """What a pruned training that was faster than its judge has left."""
    shutil.rmtree(model, ignore_errors=True)
    timings_path(model).unlink(missing_ok=True)


def _last_words(said: Path, code: int) -> str:
    """What a step said when it failed, in one line."""
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    words = next((line.removeprefix("ava: ") for line in reversed(lines) if line.startswith("ava: ")), None)
    if words:
        return words
    end = f"was killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{end}: {lines[-1]}" if lines else end
