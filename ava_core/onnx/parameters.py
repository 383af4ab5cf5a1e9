"""The float parameters of a model, with a record of which a graph has taken, so that none is forgotten."""

from __future__ import annotations

import torch
from torch import Tensor

from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEForCausalLM


class Parameters:
    """Parameters and buffers by their name in `state_dict`."""

    def __init__(self, model: EnhancedMoEForCausalLM) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self._unused = set(self._tensors)
        if model.config.tie_word_embeddings:
            self._unused.discard("lm_head.weight")

    def take(self, name: str) -> Tensor:
        """The parameter in float32, in the CPU's memory."""
        self._unused.discard(name)
        return self._tensors[name].to("cpu", torch.float32)

    def require_all_used(self) -> None:
        """Refuse a model that the graph holds only a part of.

        Raises:
            AvaError: a parameter was never taken.
        """
        if self._unused:
            raise AvaError(
                f"{', '.join(sorted(self._unused))}: the ONNX export doesn't know this parameter: it must be extended"
            )
