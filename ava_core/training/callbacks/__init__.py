"""What happens around a step of the training."""

from ava_core.training.callbacks.base import Callback, CallbackList, Row
from ava_core.training.callbacks.default import default_callbacks

__all__ = ["Callback", "CallbackList", "Row", "default_callbacks"]
