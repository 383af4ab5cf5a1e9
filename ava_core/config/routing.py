"""The routers by name, and what one asks of a configuration: the same for the `model:` section and a config.json.

To add a router, add its name here, and the class in a module of that name in `ava_core.models.routing`.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

RouterName = Literal["top_k", "confidence", "sinkhorn", "hierarchical", "expert_bias", "expert_choice"]
ROUTERS: tuple[RouterName, ...] = get_args(RouterName)


class RouterFields(Protocol):
    """What `ModelConfig` and `EnhancedMoEConfig` have in common."""

    @property
    def router(self) -> str: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def num_experts_per_token(self) -> int: ...
    @property
    def max_experts_per_token(self) -> int | None: ...
    @property
    def num_expert_groups(self) -> int: ...
    @property
    def num_groups_per_token(self) -> int: ...


def slots_field(config: RouterFields) -> str:
    """Name of the field that bounds the experts of a token."""
    return "max_experts_per_token" if config.router == "confidence" else "num_experts_per_token"


def max_slots(config: RouterFields) -> int:
    """K: the most experts that the router gives one token in evaluation; expert_choice's average while training."""
    return getattr(config, slots_field(config)) or config.num_experts


def num_logits(config: RouterFields) -> int:
    """Width of the gate: one logit per expert, and one per group when a router first chooses groups."""
    grouped = config.router == "hierarchical" and config.num_expert_groups > 1
    return config.num_experts + (config.num_expert_groups if grouped else 0)


def router_fault(config: RouterFields) -> tuple[str, str] | None:
    """The first field that doesn't fit the router in use, and what it must do.

    Fields that only other routers read are left alone: their defaults must not forbid a small model.
    """
    experts, groups = config.num_experts, config.num_expert_groups
    if max_slots(config) > experts:
        return slots_field(config), f"must be <= {experts}, the number of experts"
    if config.router != "hierarchical":
        return None
    if experts % groups:
        return "num_expert_groups", f"must divide {experts}, the number of experts"
    if config.num_groups_per_token > groups:
        return "num_groups_per_token", f"must be <= num_expert_groups = {groups}"
    reachable = config.num_groups_per_token * experts // groups
    if config.num_experts_per_token > reachable:
        chosen = config.num_groups_per_token
        return "num_experts_per_token", f"must be <= {reachable}, the experts in num_groups_per_token = {chosen} groups"
    return None
