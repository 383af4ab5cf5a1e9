"""What a model does at the end of its context. Shapes: see `shapes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

log = logging.get_logger(__name__)


class BoundedGeneration:
    """`generate`, and with it Transformers' pipelines, within `config.max_position_embeddings`.

    Beyond it rotary positions go on, and what a model writes there reads like text and means nothing. To stand before
    `GenerationMixin`.
    """

    def _prepare_generated_length(self: Any, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """The length that was asked for, or as much of it as there is room for.

        Raises:
            ValueError: the prompt alone is longer than the context.
        """
        prepared = super()._prepare_generated_length(generation_config, *args, **kwargs)  # type: ignore[misc]
        context, prompt = self.config.max_position_embeddings, kwargs["inputs_tensor"].shape[1]
        if prompt > context:
            raise ValueError(
                f"prompt of {prompt} tokens: the model's context (max_position_embeddings) is {context}: shorten it,"
                f" as tokenizer(text, truncation=True, max_length={context}) does"
            )
        # A prompt that fills the context still tells the token after it.
        room = max(context - prompt, 1)
        longest = kwargs["input_ids_length"] + room
        if prepared.max_length > longest:
            log.warning_once(f"generation ends with the model's context (max_position_embeddings = {context})")
            prepared.max_length = longest
        return prepared


def warn_beyond(context: int, position_ids: Tensor) -> None:
    """Say once that positions are beyond the context; only where looking makes nobody wait and breaks no graph."""
    if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or not position_ids.numel():
        return
    if int(position_ids.max()) >= context:
        log.warning_once(
            f"positions beyond the model's context (max_position_embeddings = {context}): it wasn't trained for them,"
            " and what it predicts there means little"
        )
