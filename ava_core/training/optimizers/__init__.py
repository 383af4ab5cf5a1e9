"""Optimisers by name, with float32 masters of weights in half precision."""

from ava_core.training.optimizers.adamw import AdamW
from ava_core.training.optimizers.build import build_optimizer
from ava_core.training.optimizers.curvature import curvature_generator, sample_labels, sampled_label_gradients
from ava_core.training.optimizers.masters import (
    MasteredOptimizer,
    OnMasters,
    exact_state_dict,
    measured_weights,
)
from ava_core.training.optimizers.muon import Muon, orthogonalize
from ava_core.training.optimizers.parameters import is_decayed, is_embedding, is_gate
from ava_core.training.optimizers.sophia import Sophia

__all__ = [
    "AdamW",
    "MasteredOptimizer",
    "Muon",
    "OnMasters",
    "Sophia",
    "build_optimizer",
    "curvature_generator",
    "exact_state_dict",
    "is_decayed",
    "is_embedding",
    "is_gate",
    "measured_weights",
    "orthogonalize",
    "sample_labels",
    "sampled_label_gradients",
]
