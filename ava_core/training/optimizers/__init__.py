"""Optimisers: AdamW and Muon, with float32 masters of weights in half precision."""

from ava_core.training.optimizers.adamw import AdamW, exact_state_dict
from ava_core.training.optimizers.build import OPTIMIZERS, build_optimizer
from ava_core.training.optimizers.muon import Muon, orthogonalize
from ava_core.training.optimizers.parameters import is_decayed, is_hidden_matrix

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "Muon",
    "build_optimizer",
    "exact_state_dict",
    "is_decayed",
    "is_hidden_matrix",
    "orthogonalize",
]
