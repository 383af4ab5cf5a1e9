"""`gym: TASK`: items that the package reasoning-gym (Apache-2.0, arXiv 2505.24760) makes, each with its own checker.

An item is made from `seed + index`, its task's settings and nothing else, so the digest covers these and the package's
version, and no item need be kept to be checked: `open_task` makes it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ava_core.config.conversations import ConversationSource
from ava_core.data.gym_tasks import GymTask, make_item, open_task
from ava_core.data.sources.formats import Row


@dataclass(frozen=True)
class GymSource:
    """Items of a task. Its `dataset` has `reasoning_gym`'s `ProceduralDataset`: `dataset[i]`, `score_answer`."""

    made: GymTask
    dataset: Any
    license: str = "Apache-2.0"
    language: str = "en"
    size: int = 0

    @property
    def name(self) -> str:
        return f"gym {self.made.task}"

    def rows(self) -> Iterator[Row]:
        """The items: `question`, `answer` (None where the task only checks) and `gym`, from which each is made again.

        `gym.entry` is the whole item; what JSON doesn't have, such as fractions, stands there as text.

        Raises:
            AvaError: the task can't make an item with these settings.
        """
        for index in range(self.made.count):
            name = f"gym:{self.made.task}:{self.made.seed}:{index}"
            entry = json.loads(json.dumps(make_item(self.dataset, index, name), default=str))
            origin = {**asdict(self.made), "index": index, "entry": entry}
            yield Row(name, {"question": entry["question"], "answer": entry["answer"], "gym": origin})

    def digest(self) -> str:
        made = json.dumps([asdict(self.made), version("reasoning-gym")], sort_keys=True)
        return hashlib.sha256(made.encode()).hexdigest()


def open_source(config: ConversationSource, separator: str | None, data: Path | None) -> GymSource:
    """The task that `config.gym` names; raises as `open_task`."""
    made = GymTask(str(config.gym), config.settings, config.seed, config.count)
    return GymSource(made, open_task(made))
