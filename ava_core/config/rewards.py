"""The list `rewards`: what an answer is worth, by functions that compute it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ava_core.config.section import Section, Weight

RewardName = Literal["metre", "lines", "speech", "gym"]
"""Built in, each the module of that name in `ava_core.alignment.rewards`."""
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]


class RewardEntry(Section):
    """One reward: exactly one of `name`, `function` or `model`."""

    name: RewardName | None = None
    """One that is built in, between 0 and 1. `metre`: ten syllables to a line; `lines`: lines as verse has them;
    `speech`: a whole reply without headings, directions and repetition; `gym`: the checker of a reasoning-gym task."""
    function: FunctionName | None = None
    """One of your own, `module:function`: gets a sequence of `ava_core.alignment.rewards.Answer`, gives a number for
    each. Its module is imported, so it runs with all that Ava may do."""
    model: Annotated[str, Field(min_length=1)] | None = None
    """A reward model: the output folder of `ava reward`, whose score counts, in no fixed range. A relative path counts
    from the current folder."""
    weight: Weight = 1.0
    """Its share in the weighted mean of all; 0: it is measured and changes nothing."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [value for value in (self.name, self.function, self.model) if value is not None]
        if len(given) != 1:
            said = f"both {' and '.join(given)}" if given else "no reward"
            raise ValueError(f"names {said}: give exactly one of name, function, model")
        if ":/" in str(self.model):
            raise ValueError(f"model = {self.model}: must be a folder, the output of `ava reward`: fetch it first")
        return self

    @property
    def label(self) -> str:
        """What messages, figures and curves call it; a model by no folder, for outputs hold no path."""
        return str(self.name or self.function or "model")


def _can_be_weighed(entries: list[RewardEntry]) -> list[RewardEntry]:
    labels = [entry.label for entry in entries]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"name {twice} twice: give it one entry, with the sum of the weights")
    if not any(entry.weight for entry in entries):
        raise ValueError("weight = 0 in all of them: give one a weight > 0")
    return entries


RewardList = Annotated[list[RewardEntry], Field(min_length=1), AfterValidator(_can_be_weighed)]
"""The type of a field `rewards` of a section."""
