"""The section `train.adapter`: low-rank updates that are trained in place of the weights, and what they add to a model.

LoRA (arXiv 2106.09685): W + alpha / r B A, of which only A (r x in) and B (out x r) are trained; of a stack of experts
each has its own. DoRA (arXiv 2402.09353) trains the length of each of W's rows too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ava_core.config.parameters import Parameter
from ava_core.config.section import Positive, PositiveNumber, Section

TargetName = Literal["attention", "experts", "router", "shared"]
MODULES = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "shared": ("moe.shared_experts.gate_up_proj", "moe.shared_experts.down_proj"),
}
"""Linear layers of a decoder layer, by target."""
PARAMETERS = {
    "experts": ("moe.experts.gate_up_proj", "moe.experts.down_proj"),
    "router": ("moe.gate.weight",),
}
"""Matrices, and stacks of them, that are no layers of their own: PEFT's `target_parameters`. For each pass their sum
with the update is formed, as a parametrisation, so that they have neither dropout nor DoRA."""


class AdapterConfig(Section):
    """Low-rank updates of a finished model (`train.init`), whose own weights stay as they are (PEFT's LoRA and DoRA).

    The output is the model with the updates merged, and these alone in its folder `adapter`.
    """

    kind: Literal["lora", "dora"] | None = None
    """`lora`, or `dora`, which learns the length of each row as well; null: all weights are trained."""
    rank: Positive = 8
    """Of the update of each matrix, and of each expert's."""
    alpha: PositiveNumber = 16.0
    """The update is multiplied with alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """On the input of the updates of attention and shared experts; experts and router can't have it."""
    targets: Annotated[list[TargetName], Field(min_length=1)] = ["attention", "experts", "shared"]
    """What is updated: `attention` (its four projections), `experts` (the FFN experts), `router` (the gates), `shared`
    (the shared experts, where there are some)."""

    @model_validator(mode="after")
    def _targets_can(self) -> AdapterConfig:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets = {self.targets}: names one twice")
        whole = [target for target in self.targets if target in PARAMETERS]
        if self.kind == "dora" and whole:
            raise ValueError(f"targets = {self.targets}: dora can't be had for {' and '.join(whole)}: use lora")
        if self.kind and self.dropout and whole:
            raise ValueError(f"dropout = {self.dropout}: {' and '.join(whole)} can't have it: use 0, or other targets")
        return self

    def modules(self) -> tuple[str, ...]:
        """Names of the linear layers that get an update, inside a decoder layer."""
        return tuple(name for target in MODULES if target in self.targets for name in MODULES[target])

    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters beside them that get one."""
        return tuple(name for target in PARAMETERS if target in self.targets for name in PARAMETERS[target])


def require_adaptable(train: Any) -> None:
    """Refuse what an adapter can't be trained with, or what has no effect beside one.

    Args:
        train: the whole section `train`, whose class has this one as a part.

    Raises:
        ValueError: one fault, with the way out.
    """
    for fault in _faults(train):
        raise ValueError(f"adapter.kind = {train.adapter.kind}: {fault}")


def _faults(train: Any) -> Iterator[str]:
    if train.adapter.kind is None:
        return
    if train.init is None and not train.begins_from_model:
        yield "is an update of a finished model: name it with init, or --init"
    if train.optimizer == "muon":
        yield (
            "optimizer = muon orthogonalises whole matrices, of which none is trained: use adamw, and a learning_rate"
            " for it, such as 0.002"
        )
    if train.freeze:
        yield f"freeze = {train.freeze}: all weights of the model are frozen anyway: leave it out"
    if train.init_schedule == "continue":
        yield "init_schedule = continue: the model's schedule was that of its weights: use anew"
    if train.keep_optimizer:
        yield "keep_optimizer = true: the model's optimiser has a state of its weights, not of updates: leave it out"
    if train.zero_stage == 3:
        yield "zero_stage = 3 cuts up the weights that an update is added to: use 2, or less"
    if train.loss.multi_token_weight:
        yield (
            f"loss.multi_token_weight = {train.loss.multi_token_weight}: prediction heads are no part of an adapter:"
            " use 0"
        )
    if train.regularization.adaptive and train.adapter.dropout:
        yield f"adapter.dropout = {train.adapter.dropout}: regularization.adaptive drives all dropout: leave out one"


def divide_adapted(
    parameters: Sequence[Parameter], adapter: AdapterConfig
) -> tuple[list[Parameter], list[Parameter], list[Parameter]]:
    """What an adapter trains of a model with these parameters, all of which it leaves as they are.

    Returns:
        The parameters of the updates; those of the model; and of these the ones whose sum with their update is formed.
    """
    linear, whole = adapter.modules(), adapter.parameters()
    trained, formed = [], []
    for parameter in parameters:
        if parameter.name.removesuffix(".weight").endswith(linear) and linear:
            trained += _update(parameter, adapter)
        elif whole and parameter.name.endswith(whole):
            trained += _update(parameter, adapter)
            formed.append(parameter)
    return trained, list(parameters), formed


def _update(parameter: Parameter, adapter: AdapterConfig) -> list[Parameter]:
    *stack, rows, columns = parameter.shape
    ranks = adapter.rank * (stack[0] if stack else 1)
    name = parameter.name.removesuffix(".weight")
    found = [
        replace(parameter, name=f"{name}.lora_A.weight", shape=(ranks, columns)),
        replace(parameter, name=f"{name}.lora_B.weight", shape=(rows, ranks)),
    ]
    if adapter.kind == "dora":
        found.append(replace(parameter, name=f"{name}.lora_magnitude_vector", shape=(rows,)))
    return found
