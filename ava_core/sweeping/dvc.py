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
from ava_core.sweeping.checks import Base, Checked

log = logging.getLogger(__name__)
QUEUED_FILE = "params.yaml"
"""The one that dvc.yaml's stages read."""


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
    program = dvc or _program()
    known = _known(program)
    queued = []
    for number, settings in enumerate(points):
        experiment = f"{name}-{number:04d}"
        if experiment in known:
            log.info("%s: is there already", experiment)
            continue
        sets = [word for key, value in settings.items() for word in ("--set-param", f"{key}={_as_text(value)}")]
        _call([program, "exp", "run", "--queue", "--name", experiment, *sets])
        queued.append(experiment)
        log.info("%s: queued: %s", experiment, ", ".join(f"{key} = {value}" for key, value in settings.items()))
    print(f"{len(queued)} experiments queued: `dvc queue start` runs them, `dvc exp show` compares them")
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


def _known(program: str) -> set[str]:
    """Names of the experiments that have run or are queued."""
    done = _call([program, "exp", "list", "--name-only"])
    waiting = _call([program, "queue", "status"])
    return {*done.split(), *waiting.split()}


def _program() -> str:
    beside = Path(sys.executable).with_name("dvc")
    found = str(beside) if beside.exists() else shutil.which("dvc")
    if not found:
        raise ConfigError("--via dvc: needs DVC: pip install 'ava-moe[pipeline]'")
    return found


def _call(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise AvaError(f"dvc {command[1]}: {shorten(' '.join(lines[:2]) or f'exit code {result.returncode}')}")
    return result.stdout
