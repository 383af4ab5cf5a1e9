"""What happens to gradients between the backward pass and the update: clipping, a guard, and surgery."""

from ava_core.training.gradients.clipping import Clipper, build_clipper
from ava_core.training.gradients.guard import Guard, Verdict, faulty_gradient, gradient_health
from ava_core.training.gradients.surgery import GradientSurgery

__all__ = ["Clipper", "GradientSurgery", "Guard", "Verdict", "build_clipper", "faulty_gradient", "gradient_health"]
