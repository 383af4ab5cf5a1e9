"""From router logits to the experts of each token: one interface (`Router`), a class per kind of router."""

from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.routing.balanced import ExpertChoiceRouter, SinkhornRouter
from ava_core.models.routing.expert_bias import BiasSteps, ExpertBiasRouter, update_expert_bias
from ava_core.models.routing.hierarchical import HierarchicalRouter
from ava_core.models.routing.router import Router, Routing
from ava_core.models.routing.routes import Routes, RouteTape
from ava_core.models.routing.statistics import RoutingStatistics, collapsed_layers, has_collapsed
from ava_core.models.routing.top_k import ConfidenceRouter, TopKRouter

ROUTERS: dict[str, type[Router]] = {
    "top_k": TopKRouter,
    "confidence": ConfidenceRouter,
    "sinkhorn": SinkhornRouter,
    "hierarchical": HierarchicalRouter,
    "expert_bias": ExpertBiasRouter,
    "expert_choice": ExpertChoiceRouter,
}


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
