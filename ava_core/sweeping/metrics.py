"""Which steps a trial consists of: those that give the figures that the sweep asks for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ava_core.errors import ConfigError
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS

TRIAL_STEPS = ("preprocess", "train", "quantize", "evaluate")
"""Without gate and register: a trial has no effects outside its folder."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a trial.

    Attributes:
        name: as the sweep's file has it.
        figure: as the step's output has it.
        step: the step that gives it.
        scheme: of quantisation; empty for a figure of the float model.
    """

    name: str
    figure: str
    step: str
    scheme: str = ""


def all_metrics() -> dict[str, Metric]:
    """Every figure that the steps of a trial give, by the name that a sweep uses."""
    found: dict[str, Metric] = {}
    for metric in _given():
        found.setdefault(metric.name, metric)
    return found


def _given() -> Iterator[Metric]:
    for step in ("train", "evaluate", "preprocess"):  # of a figure that several give, as wall_seconds, the first
        for figure in (*STEPS[step].metrics, *STEPS[step].timings):
            yield Metric(name=figure, figure=figure, step=step)
    for scheme in SCHEMES:
        for figure in (*STEPS["quantize"].metrics, *STEPS["quantize"].timings):
            yield Metric(name=f"{scheme}_{figure}", figure=figure, step="quantize", scheme=scheme)
        for figure in STEPS["evaluate"].metrics:
            yield Metric(name=f"{scheme}_{figure}", figure=f"{scheme}_{figure}", step="evaluate", scheme=scheme)


def find_metric(name: str, origin: str) -> Metric:
    """The figure of that name.

    Raises:
        ConfigError: no step gives it.
    """
    known = all_metrics()
    if name in known:
        return known[name]
    close = [other for other in known if other.endswith(f"_{name}")] or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"train gives {', '.join(STEPS['train'].metrics)}"
    raise ConfigError(f"{origin}: {name}: no step gives this figure: {hint}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a trial.

    Attributes:
        metrics: the figures that are asked for, in the order of the objectives.
        preprocess: each trial makes shards of its own, for the space touches the data.
        schemes: quantised models that are made.
        evaluate: the test split is scored.
    """

    metrics: tuple[Metric, ...]
    preprocess: bool
    schemes: tuple[str, ...]
    evaluate: bool

    @property
    def sections(self) -> set[str]:
        """Sections of the configuration that the steps read; all of preprocess, whose shards all trials may share."""
        steps = [
            "preprocess",
            "train",
            *(["quantize"] if self.schemes else []),
            *(["evaluate"] if self.evaluate else []),
        ]
        return {"preset", "threads"}.union(*(STEPS[step].sections for step in steps))


def plan(metrics: Sequence[Metric], keys: Sequence[str]) -> Plan:
    """The steps that give the figures, for a space over these keys."""
    sections = {key.split(".")[0] for key in keys}
    return Plan(
        metrics=tuple(metrics),
        # A preset says something of the tokenizer too.
        preprocess=bool(sections & {*STEPS["preprocess"].sections, "preset"})
        or any(metric.step == "preprocess" for metric in metrics),
        schemes=tuple(scheme for scheme in SCHEMES if any(metric.scheme == scheme for metric in metrics)),
        evaluate=any(metric.step == "evaluate" for metric in metrics),
    )
