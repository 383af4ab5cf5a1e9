"""`gym`: what reasoning-gym's own checker of an item says of an answer.

The item is made again from its task, settings, seed and index: a checker gets it as the task made it, and nothing that
came with the data is computed with. Some checkers evaluate the answer as Python; these see only answers of a form in
which nothing can be called.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from ava_core.alignment.rewards.answer import Answer
from ava_core.data.gym_tasks import GymTask, make_item, open_task
from ava_core.errors import AvaError

LONGEST = 2_000
"""Characters of an answer that a checker may evaluate."""
PLAIN = re.compile(r"[A-Z_\d\s]*")
ARITHMETIC = re.compile(r"(?!.*\*\s*\*)[\d\s+*/()-]*", re.DOTALL)
"""Without powers, which can take for ever."""
CALCULATED = 200
"""Characters of an arithmetic answer."""


def _is_literal(text: str) -> bool:
    if PLAIN.fullmatch(text):
        return True
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return True


def _is_arithmetic(text: str) -> bool:
    return len(text) <= CALCULATED and ARITHMETIC.fullmatch(text) is not None


EVALUATED: dict[str, Callable[[str], bool]] = {
    "binary_matrix": _is_literal,
    "countdown": _is_arithmetic,
    "n_queens": _is_literal,
    "puzzle24": _is_arithmetic,
    "spiral_matrix": _is_literal,
    "string_insertion": _is_literal,
}
"""Tasks whose checker evaluates answers, and what an answer must be to be shown to it; another one is worth 0."""
UNCHECKED = {
    "game_of_life_halting": "its checker takes any text for the answer True",
    "simple_integration": "its checker evaluates answers as Python",
}
"""Tasks whose checker isn't used, and why."""


def reward(answers: Sequence[Answer]) -> list[float]:
    """For each answer the checker's score, between 0 and 1; of what stands in its last `<answer>`, if it has one.

    Raises:
        AvaError: an answer isn't to an item of reasoning-gym, or its item can't be made again.
    """
    return [_score(answer, f"answer {position}") for position, answer in enumerate(answers, start=1)]


def _score(answer: Answer, name: str) -> float:
    from reasoning_gym.utils import extract_answer

    origin = answer.facts.get("gym")
    if not isinstance(origin, Mapping):
        raise AvaError(
            f"reward gym: {name}: its prompt isn't of a source `gym`: take the reward out, or such sources alone"
        )
    task = str(origin.get("task"))
    if task in UNCHECKED:
        raise AvaError(f"reward gym: {task}: {UNCHECKED[task]}: take another task, or a function of your own")
    dataset, item = _item_of(origin, name)
    given = extract_answer(answer.text)
    given = answer.text.strip() if given is None else given
    if task in EVALUATED and not (len(given) <= LONGEST and EVALUATED[task](given)):
        return 0.0
    try:
        score = float(dataset.score_answer(given, deepcopy(item)))
    except Exception:  # of checkers that read what isn't of the answer's form, as int("garbage")
        return 0.0
    return min(1.0, max(0.0, score))


def _item_of(origin: Mapping[str, Any], name: str) -> tuple[Any, dict[str, Any]]:
    """The task that a prompt is of, and its item."""
    try:
        settings = json.dumps(origin["settings"], sort_keys=True)
        made = str(origin["task"]), settings, int(origin["seed"]), int(origin["count"])
        index, entry = int(origin["index"]), origin["entry"]
        dataset, item = _open(*made), _make(*made, index)
        same = (entry["question"], entry["answer"]) == (item["question"], item["answer"])
    except (KeyError, TypeError, ValueError) as error:
        raise AvaError(
            f"reward gym: {name}: facts.gym lacks a part, or has it in another form ({error!r}): make the prompts anew"
        ) from error
    if not same:
        raise AvaError(
            f"reward gym: {name}: reasoning-gym makes another item {index} of {origin['task']} now than the prompt is:"
            " make the prompts anew with this version"
        )
    return dataset, item


@lru_cache(maxsize=64)
def _open(task: str, settings: str, seed: int, count: int) -> Any:
    return open_task(GymTask(task, json.loads(settings), seed, count))


@lru_cache(maxsize=8_192)
def _make(task: str, settings: str, seed: int, count: int, index: int) -> dict[str, Any]:
    return make_item(_open(task, settings, seed, count), index, f"gym:{task}:{seed}:{index}")
