"""The training objective and its parts. Shapes: see `ava_core.models.shapes`."""

from ava_core.losses.chunked import chunked_head_loss
from ava_core.losses.distillation import Distillation
from ava_core.losses.multi_token import MultiToken, future_labels
from ava_core.losses.routing import balance_loss, router_diversity_loss, router_z_loss
from ava_core.losses.rows import IGNORE_INDEX, Candidates, Rows, TeacherTargets, TokenContext
from ava_core.losses.token import CrossEntropy, FocalLoss, LogitZLoss, TokenLoss, shift_labels, token_nll
from ava_core.losses.unified import LossOutput, UnifiedLoss
from ava_core.losses.unlikelihood import EarlyEnd, NgramRepetition, Repetition, Unlikelihood

__all__ = [
    "IGNORE_INDEX",
    "Candidates",
    "CrossEntropy",
    "Distillation",
    "EarlyEnd",
    "FocalLoss",
    "LogitZLoss",
    "LossOutput",
    "MultiToken",
    "NgramRepetition",
    "Repetition",
    "Rows",
    "TeacherTargets",
    "TokenContext",
    "TokenLoss",
    "UnifiedLoss",
    "Unlikelihood",
    "balance_loss",
    "chunked_head_loss",
    "future_labels",
    "router_diversity_loss",
    "router_z_loss",
    "shift_labels",
    "token_nll",
]
