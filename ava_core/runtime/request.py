"""What a step was asked for, and what its computation gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ava_core.config.hardware import usable_cores
from ava_core.config.hosts import world_size
from ava_core.config.schema import AvaConfig
from ava_core.config.train import TrainConfig
from ava_core.progress import Progress
from ava_core.steps.spec import StepSpec


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
        """Processes that the step computes in: those of its training, for a step that trains."""
        return world_size(self.training) if self.spec.training else 1

    @property
    def training(self) -> TrainConfig:
        """The settings of the step's training; only of a step that trains."""
        return getattr(self.config, self.spec.training)


@dataclass(kw_only=True)
class StepRun:
    """What a step's computation gets, and where it leaves its figures.

    Attributes:
        config: the resolved configuration.
        inputs: folders by input name.
        digests: digest of each input's contents, as in the manifest.
        choices: values of the flags that change the result.
        output: an empty folder to write into.
        destination: where the finished output is put: what a clock made may be written beside it, as
            `DESTINATION.NAME`.
        work: the work folder.
        code: digest of the code that can change the step's result.
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
    destination: Path
    work: Path
    code: str
    state: Path
    kept: Path
    progress: Progress
    threads: int
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def input(self, name: str) -> Path:
        """The folder of an input that may be given once."""
        return self.inputs[name][0]

    def optional_input(self, name: str) -> Path | None:
        """The same of an input that need not be given; None if it isn't."""
        return next(iter(self.inputs.get(name, ())), None)
