"""From router logits to the experts of each token: one interface (`Router`), a class per kind of router.

The router called NAME is the class NameRouter in the module NAME of this folder (`expert_bias`: ExpertBiasRouter).
"""

from importlib import import_module

from ava_core.config.routing import ROUTERS as NAMES
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.expert_bias import BiasSteps, ExpertBiasRouter, update_expert_bias
from ava_core.models.routing.router import Router, Routing
from ava_core.models.routing.routes import Routes, RouteTape
from ava_core.models.routing.statistics import RoutingStatistics, collapsed_layers, has_collapsed


def router_class(name: str) -> type[Router]:
    """The class of a router."""
    return getattr(import_module(f"ava_core.models.routing.{name}"), f"{name.title().replace('_', '')}Router")


ROUTERS: dict[str, type[Router]] = {name: router_class(name) for name in NAMES}


def build_router(config: EnhancedMoEConfig) -> Router:
    """The router that `config.router` names."""
    return ROUTERS[config.router](config)


__all__ = [
    "ROUTERS",
    "BiasSteps",
    "ExpertBiasRouter",
    "RouteTape",
    "Router",
    "Routes",
    "Routing",
    "RoutingStatistics",
    "build_router",
    "collapsed_layers",
    "has_collapsed",
    "update_expert_bias",
]
