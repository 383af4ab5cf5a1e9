"""Tasks of the package reasoning-gym (Apache-2.0, arXiv 2505.24760): which are taken, and how an item is made again."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ava_core.errors import AvaError, ConfigError, shorten, typed_line

_OF_THE_HASH_SEED = "some of its items differ from one run of Python to the next (they follow the order of a set)"
UNFIT = {
    "codeio": "it runs programs that a language model wrote, to make its items",
    "composite": "it mixes other tasks: name each of them as a source",
    "intermediate_integration": _OF_THE_HASH_SEED,
    "isomorphic_strings": _OF_THE_HASH_SEED,
    "knight_swap": _OF_THE_HASH_SEED,
    "list_functions": _OF_THE_HASH_SEED,
    "polynomial_multiplication": _OF_THE_HASH_SEED,
    "ransom_note": _OF_THE_HASH_SEED,
    "word_ladder": _OF_THE_HASH_SEED,
}
"""Tasks that aren't taken, and why."""
OURS = {"seed": "seed", "size": "count"}
"""Settings of every task that the source's own keys give."""


@dataclass(frozen=True)
class GymTask:
    """A task with its settings, and which of its items are meant.

    Attributes:
        task: its name in reasoning-gym.
        settings: fields of the task's configuration.
        seed: of the item 0; item i has `seed + i`.
        count: number of items. A few tasks make other items for another count.
    """

    task: str
    settings: Mapping[str, Any]
    seed: int
    count: int


def open_task(made: GymTask) -> Any:
    """reasoning-gym's data set of a task; no item is made yet.

    Raises:
        ConfigError: the package is missing, there is no such task, it isn't taken, or it refuses its settings.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ConfigError(
            f"gym {made.task}: needs reasoning-gym ({typed_line(error)}): pip install 'ava-moe[gym]'"
        ) from error
    if made.task in UNFIT:
        raise ConfigError(f"gym {made.task}: {UNFIT[made.task]}: take another task")
    if made.task not in DATASETS:
        known = sorted(DATASETS.keys() - UNFIT)
        close = difflib.get_close_matches(made.task, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else shorten(f"there are {', '.join(known)}")
        raise ConfigError(f"gym {made.task}: reasoning-gym has no such task: {hint}")
    fields = DATASETS[made.task][1].__dataclass_fields__
    known = [name for name in fields if name not in OURS and not name.endswith("_file")]  # no digest covers a file
    for name in made.settings:
        if name in OURS:
            raise ConfigError(f"gym {made.task}: settings.{name}: set the source's own `{OURS[name]}`")
        if name not in known:
            raise ConfigError(f"gym {made.task}: settings.{name}: none that can be set: there are {', '.join(known)}")
    try:
        return create_dataset(made.task, seed=made.seed, size=made.count, **made.settings)
    except Exception as error:
        given = json.dumps(dict(made.settings))
        raise ConfigError(
            f"gym {made.task}: settings = {given}: refused ({typed_line(error)}): correct them"
        ) from error


def make_item(dataset: Any, index: int, name: str) -> dict[str, Any]:
    """An item as the task makes it: `question`, `answer`, `metadata`.

    Raises:
        AvaError: it can't.
    """
    try:
        return dataset[index]
    except Exception as error:
        raise AvaError(f"{name}: can't be made ({typed_line(error)}): choose other settings") from error
