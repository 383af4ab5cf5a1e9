"""Entries of `evaluate.tasks` and `train.tasks`: lm-eval tasks and our own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, model_validator

from ava_core.config.section import NonNegative, Positive, Section, Text

SWAPPED_WORDS, NEXT_LINE = "swapped_words", "next_line"
BUILT_IN = (SWAPPED_WORDS, NEXT_LINE)
"""Tasks that are made from held-out text: see `ava_core.tasks.held_out`."""
YAML_ENDINGS = (".yaml", ".yml")


class TaskConfig(Section):
    """One task: exactly one of `name` and `path`. A text by itself is a name, or a path if it ends in .yaml."""

    name: Text | None = None
    """`swapped_words` or `next_line`, which are made from held-out text, or a task, group or tag of lm-eval's."""
    path: Text | None = None
    """A YAML file of a task in lm-eval's form; relative paths count from the current folder, those of its data files
    from its own."""
    num_fewshot: NonNegative | None = None
    """Examples before each question; null: as the task says."""
    limit: Positive | None = None
    """Questions, the first ones; null: all (of our own tasks 500)."""
    seed: NonNegative = 1234
    """Chooses the examples, and the questions of our own tasks; the default is lm-eval's own."""
    allow_code: bool = False
    """Run the Python functions that the file at `path` names with `!function`."""

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.name or str(self.path)

    @model_validator(mode="after")
    def _exactly_one(self) -> TaskConfig:
        if (self.name is None) == (self.path is None):
            raise ValueError(f"has {'both name and path' if self.name else 'neither name nor path'}: give one of them")
        if self.name is not None and self.allow_code:
            raise ValueError(
                "allow_code = true: only for a file at `path`; lm-eval's own tasks run their own functions"
            )
        if self.name in BUILT_IN and self.num_fewshot:
            raise ValueError(f"num_fewshot = {self.num_fewshot}: {self.name} has its own context: leave it out")
        return self


def _entries(given: Any) -> Any:
    """Names and paths by themselves as entries; null is no entry."""
    if given is None:
        return []
    if not isinstance(given, list):
        return given
    return [_entry(item) if isinstance(item, str) else item for item in given]


def _entry(given: str) -> dict[str, str]:
    return {"path" if given.endswith(YAML_ENDINGS) else "name": given}


def _differ(entries: list[TaskConfig]) -> list[TaskConfig]:
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{label}: is there {labels.count(label)} times: figures are named after the task")
    return entries


TaskList = Annotated[list[TaskConfig], BeforeValidator(_entries), AfterValidator(_differ)]
