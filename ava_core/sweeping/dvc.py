"""A sweep as queued experiments of DVC: `dvc exp run --queue` for each point, then `dvc queue start` runs them."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ava_core.config.yaml_text import read_yaml
from ava_core.errors import AvaError, ConfigError, shorten
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS
from ava_core.sweeping.checks import Base, Checked
from ava_core.sweeping.metrics import TRIAL_STEPS

log = logging.getLogger(__name__)
QUEUED_FILE = "params.yaml"
"""The one that dvc.yaml's stages read."""
FIGURES = "outputs/figures.json"
"""The metrics file of dvc.yaml: what DVC shows of an experiment."""


def queue(name: str, base: Base, checked: Checked, dvc: str | None = None) -> list[str]:
    """Queue an experiment for each trial that isn't there yet; their names, which end in the trial's number.

    Args:
        name: of the sweep.
        base: the configuration; DVC knows only what is in params.yaml.
        checked: the space.
        dvc: the program; by default that of this environment.

    Raises:
        ConfigError: trials that depend on earlier ones, or a key that params.yaml doesn't list.
        AvaError: DVC refuses.
    """
    points = list(trial_settings(base, checked))
    program = dvc or find_program()
    done = set(call([program, "exp", "list", "--name-only"]).split())
    waiting = call([program, "queue", "status"]).splitlines()
    failed = {word for line in waiting if line.rstrip().endswith("Failed") for word in line.split()}
    known = {*done, *(word for line in waiting for word in line.split())}
    queued = []
    for number, settings in enumerate(points):
        experiment = f"{name}-{number:04d}"
        if experiment in failed - done:
            log.warning("%s: has failed (`dvc queue logs %s`): `dvc queue remove %s` forgets it", *3 * [experiment])
            continue
        if experiment in known:
            log.info("%s: is there already", experiment)
            continue
        sets = [word for key, value in settings.items() for word in ("--set-param", f"{key}={_as_text(value)}")]
        call([program, "exp", "run", "--queue", "--name", experiment, *sets])
        queued.append(experiment)
        log.info("%s: queued: %s", experiment, ", ".join(f"{key} = {value}" for key, value in settings.items()))
    print(f"{len(queued)} experiments queued: `dvc queue start` runs them, --results shows what came of them")
    return queued


def trial_settings(base: Base, checked: Checked) -> Iterator[dict[str, Any]]:
    """What each trial sets: known before the first has run.

    Raises:
        ConfigError: as `queue`.
    """
    space = checked.space
    faults = []
    if space.method == "tpe":
        faults.append("method = tpe: goes by what earlier trials gave, which a queue doesn't know: use grid or random")
    if space.pruner:
        faults.append("pruner: DVC ends no experiment early: leave it out")
    shown = key_figures()
    faults += [
        f"{goal.name}: DVC's experiments are compared by {FIGURES}, which hasn't it: use one of {', '.join(shown)}"
        for goal in space.goals
        if goal.name not in shown
    ]
    if base.configs or base.overrides:
        faults.append("--config, --set: DVC reads params.yaml alone: write the values there")
    if base.params is None or base.params.name != QUEUED_FILE:
        faults.append(f"{base.params}: DVC's stages read {QUEUED_FILE}: give that")
    else:
        listed = read_yaml(base.params.read_text()) or {}
        faults += [
            f"{base.params}: {key}: isn't listed there, and DVC sets no other keys: add it, with null for now"
            for key in space.parameters
            if not _is_listed(listed, key)
        ]
    if faults:
        raise ConfigError(*faults)
    if checked.points:
        yield from checked.points
        return
    from ava_core.sweeping.sampling import random_settings

    yield from random_settings(checked)


def _is_listed(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _as_text(value: Any) -> str:
    """What Hydra, which DVC reads overrides with, takes for the value."""
    return value if isinstance(value, str) and value.replace("_", "").isalnum() else json.dumps(value)


def key_figures() -> dict[str, tuple[str, str]]:
    """The figures that DVC shows, by the names that a sweep uses: the entry in `FIGURES`, and the name in it."""
    found: dict[str, tuple[str, str]] = {}
    for step in TRIAL_STEPS:
        for figure in STEPS[step].headlines:
            if STEPS[step].choices:
                found |= {f"{scheme}_{figure}": (f"{step}-{scheme}", figure) for scheme in SCHEMES}
            else:
                found[figure] = (step, figure)
    return found


def find_program() -> str:
    """DVC's program, that of this environment first.

    Raises:
        ConfigError: there is none.
    """
    beside = Path(sys.executable).with_name("dvc")
    found = str(beside) if beside.exists() else shutil.which("dvc")
    if not found:
        raise ConfigError("--via dvc: needs DVC: pip install 'ava-moe[pipeline]'")
    return found


def call(command: list[str]) -> str:
    """What a command of DVC's prints.

    Raises:
        AvaError: it ends with a fault; the message is DVC's.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise AvaError(f"dvc {command[1]}: {shorten(' '.join(lines[:2]) or f'exit code {result.returncode}')}")
    return result.stdout
