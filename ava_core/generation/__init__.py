"""Loading a model, as trained or as quantised, and letting it continue prompts."""

from ava_core.generation.decoding import STRATEGIES, generate
from ava_core.generation.loading import load_model

__all__ = ["STRATEGIES", "generate", "load_model"]
