"""The training objective and its parts. Shapes: see `ava_core.models.shapes`."""

from ava_core.losses.chunked import chunked_head_loss, chunked_token_nll
from ava_core.losses.routing import balance_loss, router_z_loss
from ava_core.losses.token import IGNORE_INDEX, CrossEntropy, LogitZLoss, TokenLoss, shift_labels, token_nll
from ava_core.losses.unified import LossOutput, UnifiedLoss

__all__ = [
    "IGNORE_INDEX",
    "CrossEntropy",
    "LogitZLoss",
    "LossOutput",
    "TokenLoss",
    "UnifiedLoss",
    "balance_loss",
    "chunked_head_loss",
    "chunked_token_nll",
    "router_z_loss",
    "shift_labels",
    "token_nll",
]
